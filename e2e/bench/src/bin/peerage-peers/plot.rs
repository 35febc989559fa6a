//! Pictures of what was measured: for each measure a panel with a bar for each subject, from nought, with its value.

use std::fmt::Write as _;

use peerage_bench::figures::{Figures, Line, distinct, short};

/// Pictures, and which measures belong into each, by how their names begin. What fits several is in the first.
const PICTURES: [(&str, &[&str]); 5] = [
    ("peers-throughput.svg", &["throughput", "relayed throughput", "processor time, throughput"]),
    ("peers-requests.svg", &["requests", "relayed requests"]),
    ("peers-setup.svg", &["set-up"]),
    ("peers-memory.svg", &["memory"]),
    ("peers-links.svg", &["5 MB", "one stream at"]),
];

/// The bar that is ours, and the others.
const OURS: &str = "#0b7a75";
const OTHERS: &str = "#9aa5b1";
const SUBJECT: &str = "Peerage";
/// In units of the picture, which are points at its own size.
const WIDTH: usize = 720;
const LEFT: usize = 140;
const RIGHT: usize = 110;
const TITLE: usize = 34;
const BAR: usize = 20;
const GAP: usize = 14;

/// The name and content of each picture for which there is something to show.
pub fn pictures(figures: &Figures) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, beginnings) in PICTURES {
        let belongs = |line: &&Line| line.value.is_some() && beginnings.iter().any(|b| line.measure.starts_with(b));
        let lines: Vec<&Line> = figures.lines().iter().filter(belongs).collect();
        if !lines.is_empty() {
            all.push((name.to_owned(), picture(&lines)));
        }
    }
    all
}

fn picture(lines: &[&Line]) -> String {
    let mut body = String::new();
    let mut top = GAP;
    for measure in distinct(lines.iter().map(|line| line.measure.as_str())) {
        let row: Vec<&Line> = lines.iter().copied().filter(|line| line.measure == measure).collect();
        top = panel(&mut body, top, measure, &row);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#1f2933\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// Draws one measure from `top` on, and returns where the next may begin.
fn panel(body: &mut String, mut top: usize, measure: &str, row: &[&Line]) -> usize {
    let unit = row.first().map_or("", |line| line.unit.as_str());
    let most = row.iter().filter_map(|line| line.value).fold(f64::MIN_POSITIVE, f64::max);
    let _ = writeln!(
        body,
        "<text x=\"{GAP}\" y=\"{}\" font-weight=\"bold\">{} ({})</text>",
        top + 18,
        escape(measure),
        escape(unit)
    );
    top += TITLE;
    for line in row {
        let value = line.value.unwrap_or_default();
        let length = value / most * (WIDTH - LEFT - RIGHT) as f64;
        let colour = if line.subject == SUBJECT { OURS } else { OTHERS };
        let baseline = top + 15;
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{baseline}\">{}</text>",
            LEFT - 8,
            escape(&line.subject),
            top + 2,
            BAR - 4,
            LEFT as f64 + length + 6.0,
            short(value),
        );
        top += BAR;
    }
    top + GAP
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Figure;

    fn drawn() -> Vec<(String, String)> {
        let mut figures = Figures::default();
        figures.note("raw TCP", Figure::new("throughput, 1 stream", 8.0, "Gbit/s"));
        figures.note("Peerage", Figure::new("throughput, 1 stream", 4.0, "Gbit/s"));
        figures.note("a < b", Figure::new("memory, idle", 4.0, "MiB"));
        figures.not_run("frp", "", "it is not there");
        pictures(&figures)
    }

    #[test]
    fn each_group_of_measures_has_a_picture_of_its_own() {
        let names: Vec<String> = drawn().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["peers-throughput.svg", "peers-memory.svg"]);
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let width = |bar: &str| -> f64 {
            let after = bar.split_once("width=\"").expect("a width").1;
            after.split_once('"').expect("its end").0.parse().expect("a number")
        };
        let picture = &drawn()[0].1;
        let bars: Vec<f64> = picture.split("<rect x=").skip(1).map(width).collect();
        assert_eq!(bars, [(WIDTH - LEFT - RIGHT) as f64, (WIDTH - LEFT - RIGHT) as f64 / 2.0]);
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        assert!(drawn()[1].1.contains("a &lt; b"));
    }
}
