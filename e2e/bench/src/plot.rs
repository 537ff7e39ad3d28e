//! Plots as SVG, written by hand: bars of throughput and distributions of latency.

use std::fmt::Write as _;

use crate::{
    report::{Cell, short},
    stats::{Latencies, Spread},
    systems::System,
};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const BAR: f64 = 16.0;

const fn colour(system: System) -> &'static str {
    match system {
        System::Palisade => "#1f6f8b",
        System::Kafka => "#c9803a",
    }
}

fn page(title: &str, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n{}{body}</svg>\n",
        escape(title),
        legend()
    )
}

fn legend() -> String {
    System::BOTH
        .iter()
        .enumerate()
        .map(|(index, system)| {
            let x = WIDTH - 190.0 + index as f64 * 95.0;
            format!(
                "<rect x=\"{x}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"24\">{system}</text>\n",
                colour(*system),
                x + 17.0
            )
        })
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Bars of the median of every cell in one unit, with a line from the smallest to the largest run. None without such cells.
pub fn bars(title: &str, unit: &str, cells: &[Cell]) -> Option<String> {
    let shown: Vec<&Cell> = cells
        .iter()
        .filter(|cell| cell.unit == unit && (cell.palisade.is_some() || cell.kafka.is_some()))
        .collect();
    let largest = shown
        .iter()
        .flat_map(|cell| [cell.palisade, cell.kafka])
        .flatten()
        .map(|spread| spread.max)
        .fold(0.0, f64::max);
    if largest <= 0.0 {
        return None;
    }
    let scale = (WIDTH - LEFT - 90.0) / largest;
    let mut body = String::new();
    for (row, cell) in shown.iter().enumerate() {
        let top = 44.0 + row as f64 * (2.0 * BAR + 18.0);
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#777\">{}</text>",
            LEFT - 8.0,
            top + 13.0,
            escape(&cell.name),
            LEFT - 8.0,
            top + 28.0,
            escape(&cell.metric),
        );
        for (index, (system, spread)) in [
            (System::Palisade, cell.palisade),
            (System::Kafka, cell.kafka),
        ]
        .into_iter()
        .enumerate()
        {
            if let Some(spread) = spread {
                body.push_str(&bar(
                    top + index as f64 * (BAR + 2.0),
                    system,
                    spread,
                    scale,
                ));
            }
        }
    }
    let height = 60.0 + shown.len() as f64 * (2.0 * BAR + 18.0);
    Some(page(&format!("{title} ({unit})"), height, &body))
}

fn bar(top: f64, system: System, spread: Spread, scale: f64) -> String {
    let middle = top + BAR / 2.0;
    format!(
        "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
         <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#222\" stroke-width=\"2\"/>\
         <text x=\"{:.1}\" y=\"{}\">{}</text>\n",
        spread.median * scale,
        colour(system),
        LEFT + spread.min * scale,
        LEFT + spread.max * scale,
        LEFT + spread.max * scale + 6.0,
        top + 12.0,
        short(spread.median)
    )
}

/// Latency against percentile, both axes logarithmic: to the right are the slowest 10 %, 1 %, 0.1 %, ... of all records.
pub fn distribution(title: &str, both: &[(System, &Latencies)]) -> Option<String> {
    let both: Vec<_> = both
        .iter()
        .filter(|(_, latencies)| latencies.len() > 0)
        .collect();
    let slowest = both
        .iter()
        .filter_map(|(_, latencies)| latencies.percentile(100.0))
        .max()?;
    let (top, bottom, right) = (50.0, 360.0, WIDTH - 40.0);
    let left = 70.0;
    // From 0.1 ms to the next power of ten; from 0 % to 99.99 %.
    let decades = (f64::from(slowest.max(1)) / 100.0).log10().ceil().max(1.0);
    let y = |micros: f64| bottom - (micros.max(100.0) / 100.0).log10() / decades * (bottom - top);
    let x = |percent: f64| left + -(1.0 - percent / 100.0).log10() / 4.0 * (right - left);
    let mut body = String::new();
    for decade in 0..=(decades as u32) {
        let micros = 100.0 * 10_f64.powi(decade.cast_signed());
        let _ = writeln!(
            body,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/><text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3} ms</text>",
            y(micros),
            left - 6.0,
            y(micros) + 4.0,
            micros / 1000.0
        );
    }
    for percent in [0.0, 50.0, 90.0, 99.0, 99.9, 99.99] {
        let _ = writeln!(
            body,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#ddd\"/><text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\">{percent} %</text>",
            x(percent),
            bottom + 18.0
        );
    }
    for (system, latencies) in both {
        let points: String = (0..=200)
            .map(|step| 100.0 * (1.0 - 10_f64.powf(-4.0 * f64::from(step) / 200.0)))
            .filter_map(|percent| {
                let micros = latencies.percentile(percent)?;
                Some(format!("{:.1},{:.1} ", x(percent), y(f64::from(micros))))
            })
            .collect();
        let _ = writeln!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            points.trim_end(),
            colour(*system)
        );
    }
    Some(page(title, 400.0, &body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::Must;

    #[test]
    fn a_bar_is_as_long_as_its_median() {
        let spread = |median| {
            Some(Spread {
                min: median,
                median,
                max: median,
            })
        };
        let cells = [
            Cell::new(
                "a <b>",
                "x",
                "MB/s",
                Must::Nothing,
                spread(100.0),
                spread(50.0),
            ),
            Cell::new("c", "x", "ms", Must::Nothing, spread(1.0), None),
        ];
        let svg = bars("Throughput", "MB/s", &cells).unwrap();
        assert!(
            svg.contains("width=\"520.0\"") && svg.contains("width=\"260.0\""),
            "{svg}"
        );
        assert!(svg.contains("a &lt;b&gt;") && svg.ends_with("</svg>\n"));
        assert_eq!(bars("Throughput", "km", &cells), None);
    }

    #[test]
    fn a_distribution_needs_samples() {
        let none = Latencies::default();
        assert_eq!(distribution("x", &[(System::Kafka, &none)]), None);
        let some = Latencies::new((100..10_000).collect());
        let svg = distribution("x", &[(System::Kafka, &none), (System::Palisade, &some)]).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
