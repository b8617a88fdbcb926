//! Charts with logarithmic axes, as one SVG file: panels in two columns, each with its own legend.

use std::fmt::Write as _;

pub struct Series {
    pub name: String,
    pub colour: &'static str,
    /// For what is no server's: limits of the machine.
    pub dashed: bool,
    pub points: Vec<(f64, f64)>,
}

pub struct Panel {
    pub title: String,
    pub x_label: &'static str,
    pub y_label: &'static str,
    /// Where the horizontal axis has a mark, and what stands there.
    pub x_ticks: Vec<(f64, String)>,
    pub series: Vec<Series>,
}

/// Colours that are told apart in print and by most who see few colours (Okabe and Ito).
pub const BLUE: &str = "#0072b2";
pub const ORANGE: &str = "#d55e00";
pub const GREEN: &str = "#009e73";
pub const PINK: &str = "#cc79a7";
pub const AMBER: &str = "#e69f00";
pub const BLACK: &str = "#222222";

const PANEL_WIDTH: f64 = 640.0;
const PLOT_HEIGHT: f64 = 300.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 44.0;
const BELOW_PLOT: f64 = 48.0;
const LEGEND_LINE: f64 = 18.0;
const HEADING: f64 = 64.0;

/// The document. Panels without points are left out.
pub fn document(heading: &str, below: &str, panels: &[Panel]) -> String {
    let drawn: Vec<&Panel> = panels.iter().filter(|p| p.has_points()).collect();
    let lines = drawn.iter().map(|p| p.series.len()).max().unwrap_or(0);
    let panel_height =
        TOP + PLOT_HEIGHT + BELOW_PLOT + lines.div_ceil(2) as f64 * LEGEND_LINE + 16.0;
    let height = HEADING + drawn.len().div_ceil(2) as f64 * panel_height;
    let width = 2.0 * PANEL_WIDTH;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#222222\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"20\" font-weight=\"600\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"50\" fill=\"#555555\">{}</text>\n",
        escaped(heading),
        escaped(below)
    );
    for (n, panel) in drawn.iter().enumerate() {
        let x = (n % 2) as f64 * PANEL_WIDTH;
        let y = HEADING + (n / 2) as f64 * panel_height;
        writeln!(out, "<g transform=\"translate({x} {y})\">").expect("in memory");
        panel.draw(&mut out);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// A range of values laid over a range of the page, by their logarithms.
struct Axis {
    values: (f64, f64),
    page: (f64, f64),
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let (from, to) = (self.values.0.ln(), self.values.1.ln());
        let share = (value.ln() - from) / (to - from);
        self.page.0 + share * (self.page.1 - self.page.0)
    }
}

impl Panel {
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let all = self.series.iter().flat_map(|s| s.points.iter().copied());
        all.filter(|p| p.0 > 0.0 && p.1 > 0.0)
    }

    fn has_points(&self) -> bool {
        self.points().next().is_some()
    }

    fn draw(&self, out: &mut String) {
        let bounds = |of: fn((f64, f64)) -> f64| {
            let values = self.points().map(of);
            values.fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), v| {
                (least.min(v), most.max(v))
            })
        };
        let (x_least, x_most) = bounds(|p| p.0);
        let (y_least, y_most) = bounds(|p| p.1);
        let x = Axis {
            values: (x_least / 1.2, x_most * 1.2),
            page: (LEFT, PANEL_WIDTH - RIGHT),
        };
        let y = Axis {
            values: (y_least / 1.3, y_most * 1.3),
            page: (TOP + PLOT_HEIGHT, TOP),
        };
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        line(format!(
            "<text x=\"{LEFT}\" y=\"28\" font-size=\"15\" font-weight=\"600\">{}</text>",
            escaped(&self.title)
        ));
        for (value, label) in &self.x_ticks {
            if *value < x.values.0 || *value > x.values.1 {
                continue;
            }
            let at = x.place(*value);
            line(format!(
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                y.page.1,
                y.page.0,
                y.page.0 + 18.0,
                escaped(label)
            ));
        }
        for value in ticks(y.values) {
            let at = y.place(value);
            line(format!(
                "<line x1=\"{}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                x.page.0,
                x.page.1,
                x.page.0 - 8.0,
                at + 4.5,
                grouped(value)
            ));
        }
        line(format!(
            "<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"#777777\"/>",
            x.page.0, y.page.1, y.page.0, x.page.1
        ));
        line(format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
            (x.page.0 + x.page.1) / 2.0,
            y.page.0 + 38.0,
            escaped(self.x_label)
        ));
        line(format!(
            "<text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
            (y.page.0 + y.page.1) / 2.0,
            escaped(self.y_label)
        ));
        for (n, series) in self.series.iter().enumerate() {
            let dash = if series.dashed {
                " stroke-dasharray=\"6 4\""
            } else {
                ""
            };
            let stroke = format!("stroke=\"{}\" stroke-width=\"2\"{dash}", series.colour);
            let points: Vec<(f64, f64)> = series
                .points
                .iter()
                .filter(|p| p.0 > 0.0 && p.1 > 0.0)
                .map(|p| (x.place(p.0), y.place(p.1)))
                .collect();
            let joined: Vec<String> = points
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            line(format!(
                "<polyline points=\"{}\" fill=\"none\" {stroke}/>",
                joined.join(" ")
            ));
            for (x, y) in points {
                line(format!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{}\"/>",
                    series.colour
                ));
            }
            let at = LEFT + (n % 2) as f64 * 276.0;
            let row = y.page.0 + BELOW_PLOT + 12.0 + (n / 2) as f64 * LEGEND_LINE;
            line(format!(
                "<line x1=\"{at}\" x2=\"{}\" y1=\"{1}\" y2=\"{1}\" {stroke}/><text x=\"{2}\" y=\"{3}\" font-size=\"11\">{4}</text>",
                at + 26.0,
                row - 4.5,
                at + 32.0,
                row,
                escaped(&series.name)
            ));
        }
    }
}

/// 1, 2 and 5 of each decade in the range; where that is many, 1 alone.
fn ticks((from, to): (f64, f64)) -> Vec<f64> {
    let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
    let steps: &[f64] = if to / from > 2e3 {
        &[1.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    decades
        .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
        .filter(|value| (from..=to).contains(value))
        .collect()
}

/// `12,000`, `0.05`.
fn grouped(value: f64) -> String {
    if value < 1.0 {
        let text = format!("{value:.4}");
        return text.trim_end_matches('0').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (value, text) in [
            (0.05, "0.05"),
            (1.0, "1"),
            (500.0, "500"),
            (12_000.0, "12,000"),
        ] {
            assert_eq!(grouped(value), text);
        }
        assert_eq!(ticks((0.9, 60.0)), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(ticks((1.5, 9000.0)), [10.0, 100.0, 1000.0]);
    }

    #[test]
    fn axes_go_by_logarithms() {
        let axis = Axis {
            values: (1.0, 10_000.0),
            page: (100.0, 0.0),
        };
        assert!((axis.place(100.0) - 50.0).abs() < 1e-9);
        assert!((axis.place(10_000.0)).abs() < 1e-9);
    }

    #[test]
    fn a_panel_is_drawn_and_an_empty_one_is_not() {
        let panel = |points| Panel {
            title: "PUT & GET".into(),
            x_label: "size",
            y_label: "MB/s",
            x_ticks: vec![(4.0, "4".into())],
            series: vec![Series {
                name: "a < b".into(),
                colour: BLUE,
                dashed: true,
                points,
            }],
        };
        let drawn = document(
            "h",
            "b",
            &[panel(vec![(4.0, 10.0), (8.0, 0.0)]), panel(vec![])],
        );
        assert_eq!(
            drawn.matches("<circle").count(),
            1,
            "no logarithm of nothing"
        );
        assert_eq!(drawn.matches("PUT &amp; GET").count(), 1);
        assert!(drawn.contains("a &lt; b") && !drawn.contains("NaN") && !drawn.contains("inf"));
        assert!(!document("h", "b", &[panel(vec![])]).contains("<g"));
    }
}
