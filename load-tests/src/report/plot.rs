//! Plots as inline SVG: lines over two axes, labelled where they end, coloured by the page's style sheet.

use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 232.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 66.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 24.0;
/// Labels at the ends of lines keep this distance, so that they stay legible where lines meet.
const LABEL_DISTANCE: f64 = 13.0;

/// One axis: what it spans, how values fall on it, and its ticks.
#[derive(Debug, Clone)]
pub struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to a little more than `high`, with round ticks.
    pub fn linear(high: f64, label: impl Fn(f64) -> String) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        let step = round_step(high / 4.0);
        let count = (high / step).ceil();
        let ticks = counting(count).map(|n| (n * step, label(n * step))).collect();
        Self { low: 0.0, high: count * step, logarithmic: false, ticks }
    }

    /// Whole decades around both values, with a tick at each.
    pub fn decades(low: f64, high: f64, label: impl Fn(f64) -> String) -> Self {
        let first = low.max(1e-6).log10().floor();
        let last = high.max(low.max(1e-6) * 1.01).log10().ceil().max(first + 1.0);
        let ticks = counting(last - first).map(|n| 10_f64.powf(first + n)).map(|value| (value, label(value))).collect();
        Self { low: 10_f64.powf(first), high: 10_f64.powf(last), logarithmic: true, ticks }
    }

    /// Exactly these ticks, from the first to the last, evenly or by their logarithms.
    pub fn between(ticks: Vec<(f64, String)>, logarithmic: bool) -> Self {
        let low = ticks.first().map_or(0.0, |tick| tick.0);
        let high = ticks.last().map_or(1.0, |tick| tick.0);
        Self { low, high, logarithmic, ticks }
    }

    /// 0 at the axis' beginning, 1 at its end; values beyond stay at the edge.
    fn place(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.low).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        place.clamp(0.0, 1.0)
    }
}

fn counting(last: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(0.0), |n| Some(n + 1.0)).take_while(move |n| *n <= last)
}

/// The next of 1, 2, 5 × 10ⁿ at or above.
fn round_step(at_least: f64) -> f64 {
    let decade = 10_f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * decade)
        .into_iter()
        .find(|step| *step >= at_least * 0.999)
        .unwrap_or(decade)
}

/// One plot while it is drawn.
#[derive(Debug)]
pub struct Plot {
    x: Axis,
    y: Axis,
    marks: String,
    labels: Vec<Label>,
}

#[derive(Debug)]
struct Label {
    height: f64,
    text: String,
    class: &'static str,
}

impl Plot {
    pub fn new(x: Axis, y: Axis) -> Self {
        Self { x, y, marks: String::new(), labels: Vec::new() }
    }

    /// A line through the points, with its name at its end.
    pub fn line(&mut self, class: &'static str, name: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let points: Vec<_> = points.into_iter().map(|point| self.at(point)).collect();
        let Some(last) = points.last() else { return };
        let _ = writeln!(self.marks, r#"<path class="line {class}" d="{}"/>"#, path(&points));
        self.labels.push(Label { height: last.1, text: escape(name), class });
    }

    /// The ground between a line and the lower edge.
    pub fn area(&mut self, class: &'static str, points: impl IntoIterator<Item = (f64, f64)>) {
        let points: Vec<_> = points.into_iter().map(|point| self.at(point)).collect();
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            let floor = HEIGHT - BOTTOM;
            let outline = path(&points);
            let _ = writeln!(
                self.marks,
                r#"<path class="area {class}" d="{outline}L{:.1} {floor}L{:.1} {floor}Z"/>"#,
                last.0, first.0
            );
        }
    }

    /// A level that means something, across the whole plot.
    pub fn level(&mut self, class: &'static str, name: &str, y: f64) {
        let (_, height) = self.at((self.x.low, y));
        let _ = writeln!(self.marks, r#"<path class="level {class}" d="M{LEFT} {height:.1}H{:.1}"/>"#, WIDTH - RIGHT);
        self.labels.push(Label { height, text: escape(name), class });
    }

    /// A strip over which the pointer shows this text.
    pub fn strip(&mut self, from: f64, to: f64, text: &str) {
        let ((left, _), (right, _)) = (self.at((from, self.y.low)), self.at((to, self.y.low)));
        let _ = writeln!(
            self.marks,
            r#"<rect class="strip" x="{left:.1}" y="{TOP}" width="{:.1}" height="{}"><title>{}</title></rect>"#,
            right - left,
            HEIGHT - TOP - BOTTOM,
            escape(text)
        );
    }

    /// The SVG element; `name` is for those who cannot see it.
    pub fn render(mut self, name: &str) -> String {
        let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#, escape(name));
        for (value, text) in &self.y.ticks {
            let (_, height) = self.at((self.x.low, *value));
            let _ = write!(
                svg,
                r#"<path class="grid" d="M{LEFT} {height:.1}H{:.1}"/><text class="tick" x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
                WIDTH - RIGHT,
                LEFT - 7.0,
                height + 3.5,
                escape(text)
            );
        }
        for (value, text) in &self.x.ticks {
            let (left, _) = self.at((*value, self.y.low));
            let _ = write!(
                svg,
                r#"<path class="notch" d="M{left:.1} {}v4"/><text class="tick" x="{left:.1}" y="{}" text-anchor="middle">{}</text>"#,
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 16.0,
                escape(text)
            );
        }
        svg.push_str(&self.marks);
        spread(&mut self.labels);
        for Label { height, text, class } in &self.labels {
            let _ = write!(
                svg,
                r#"<text class="name {class}" x="{}" y="{:.1}">{text}</text>"#,
                WIDTH - RIGHT + 6.0,
                height + 3.5
            );
        }
        svg + "</svg>"
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT);
        let down = HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM);
        (across, down)
    }
}

fn path(points: &[(f64, f64)]) -> String {
    let mut path = String::with_capacity(points.len() * 12);
    for (n, (x, y)) in points.iter().enumerate() {
        let _ = write!(path, "{}{x:.1} {y:.1}", if n == 0 { 'M' } else { 'L' });
    }
    path
}

/// Moves labels down, then up from the floor, until none covers another.
fn spread(labels: &mut [Label]) {
    labels.sort_by(|a, b| a.height.total_cmp(&b.height));
    for n in 1..labels.len() {
        labels[n].height = labels[n].height.max(labels[n - 1].height + LABEL_DISTANCE);
    }
    let mut floor = HEIGHT - BOTTOM;
    for label in labels.iter_mut().rev() {
        label.height = label.height.min(floor);
        floor = label.height - LABEL_DISTANCE;
    }
}

/// Text for HTML and SVG, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_axis_holds_its_highest_value_and_few_ticks(high in 1e-3..1e9_f64) {
            let axis = Axis::linear(high, |value| value.to_string());
            prop_assert!(axis.high >= high * 0.999);
            prop_assert!((3..=6).contains(&axis.ticks.len()), "{:?}", axis.ticks);
        }

        #[test]
        fn labels_never_cover_each_other(heights in prop::collection::vec(TOP..(HEIGHT - BOTTOM), 0..8)) {
            let mut labels: Vec<_> = heights.into_iter().map(|height| Label { height, text: String::new(), class: "" }).collect();
            spread(&mut labels);
            for pair in labels.windows(2) {
                prop_assert!(pair[1].height - pair[0].height >= LABEL_DISTANCE - 1e-9);
            }
        }
    }

    #[test]
    fn a_logarithmic_axis_gives_each_decade_the_same_room() {
        let axis = Axis::decades(0.2, 90.0, |value| value.to_string());
        assert_eq!(axis.ticks.len(), 4);
        assert!((axis.place(1.0) - 1.0 / 3.0).abs() < 1e-9);
        assert!((axis.place(10.0) - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn text_from_outside_cannot_end_an_element() {
        assert_eq!(escape(r#"<a b="c">&"#), "&lt;a b=&quot;c&quot;&gt;&amp;");
    }
}
