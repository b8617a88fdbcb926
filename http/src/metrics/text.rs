//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

/// Families of metrics, being written.
#[derive(Default)]
pub struct Text(String);

/// One family: its samples follow its name and help.
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Text {
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "histogram", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let text = &mut self.0;
        put(
            text,
            format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
        );
        Family { text, name }
    }

    pub fn end(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// A sample without labels.
    pub fn is(self, value: impl Display) {
        put(self.text, format_args!("{} {value}\n", self.name));
    }

    /// A sample with labels. Their values are ours: words without quotes, backslashes or line ends.
    pub fn with(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.part("", labels, value);
    }

    /// A sample of a part of a family: `_bucket`, `_sum`, `_count`.
    pub fn part(&mut self, part: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        put(self.text, format_args!("{}{part}", self.name));
        for (i, (name, of)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            put(self.text, format_args!("{open}{name}=\"{of}\""));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        put(self.text, format_args!("{close} {value}\n"));
    }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_samples() {
        let mut text = Text::default();
        text.gauge("a", "What a is.").is(1.5);
        let mut b = text.counter("b_total", "Bs.");
        b.with(&[("kind", &"x"), ("code", &200)], 7);
        b.with(&[], 8);
        assert_eq!(
            text.end(),
            "# HELP a What a is.\n# TYPE a gauge\na 1.5\n\
             # HELP b_total Bs.\n# TYPE b_total counter\nb_total{kind=\"x\",code=\"200\"} 7\nb_total 8\n"
        );
    }
}
