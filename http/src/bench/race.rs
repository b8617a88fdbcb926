//! Contestants that take turns, and what comes of it.

use std::time::{Duration, Instant};

/// One who runs: `lap` goes through `bytes` bytes and says how long it took.
pub struct Contestant<'a> {
    pub name: &'static str,
    pub bytes: usize,
    pub lap: Box<dyn FnMut() -> Duration + 'a>,
}

/// Bytes per second of each contestant in each round.
pub struct Outcome {
    speeds: Vec<(&'static str, Vec<f64>)>,
}

/// As many rounds as are enough, or as there is time for once there are three.
#[derive(Clone, Copy)]
pub struct Rules {
    pub rounds: usize,
    /// Of each contestant in each round; at least one lap.
    pub turn: Duration,
    pub time: Duration,
}

/// Runs round after round, in each of them each contestant.
pub fn race(rules: Rules, mut contestants: Vec<Contestant<'_>>) -> Outcome {
    let begun = Instant::now();
    for contestant in &mut contestants {
        (contestant.lap)();
    }
    let mut speeds: Vec<_> = contestants.iter().map(|c| (c.name, Vec::new())).collect();
    for round in 0..rules.rounds {
        if round >= 3 && begun.elapsed() > rules.time {
            break;
        }
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let contestant = &mut contestants[at];
            let (mut took, mut bytes) = (Duration::ZERO, 0);
            while took < rules.turn {
                took += (contestant.lap)();
                bytes += contestant.bytes;
            }
            speeds[at].1.push(bytes as f64 / took.as_secs_f64());
        }
    }
    Outcome { speeds }
}

impl Outcome {
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.speeds.iter().map(|(name, _)| *name)
    }

    /// Decimal gigabytes per second.
    pub fn speed(&self, name: &str) -> f64 {
        median(self.of(name).to_vec()) / 1e9
    }

    /// How many times as fast `one` is as `other`.
    pub fn ratio(&self, one: &str, other: &str) -> f64 {
        let pairs = self.of(one).iter().zip(self.of(other));
        median(pairs.map(|(one, other)| one / other).collect())
    }

    fn of(&self, name: &str) -> &[f64] {
        let found = self.speeds.iter().find(|(n, _)| *n == name);
        found.map_or(&[], |(_, speeds)| speeds)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_and_ratios_are_medians_over_rounds() {
        let contestant = |name, millis: [u64; 6]| {
            // The first lap warms up.
            let mut laps = millis.into_iter().map(Duration::from_millis);
            Contestant {
                name,
                bytes: 1_000_000,
                lap: Box::new(move || laps.next().expect("five rounds and a lap")),
            }
        };
        let rules = Rules {
            rounds: 5,
            turn: Duration::from_nanos(1),
            time: Duration::from_secs(60),
        };
        let result = race(
            rules,
            vec![
                contestant("a", [1, 1, 1, 9, 1, 1]),
                contestant("b", [9, 2, 2, 2, 2, 90]),
            ],
        );
        assert_eq!(result.names().collect::<Vec<_>>(), ["a", "b"]);
        assert!((result.speed("a") - 1.0).abs() < 1e-9);
        assert!((result.speed("b") - 0.5).abs() < 1e-9);
        assert!((result.ratio("a", "b") - 2.0).abs() < 1e-9);
    }
}
