//! How long steps took: a histogram each for steps that plugged, that unplugged, and for all others.

use std::fmt::{self, Write};

use super::{nothing, number};
use crate::latency::Histogram;
use crate::{Report, show};

/// Most bars that all have labels.
const MAX_LABELS: usize = 6;

pub fn draw(page: &mut String, report: &Report) -> fmt::Result {
    let all = &report.latencies;
    let titled = [
        ("plug", "Plugging", &all.plug),
        ("unplug", "Unplugging", &all.unplug),
        ("other", "Other steps", &all.other),
    ];
    if titled.iter().all(|(.., histogram)| histogram.count == 0) {
        return nothing(page, "No step was run.");
    }
    writeln!(page, "<div class=\"panels\">")?;
    for (class, title, histogram) in titled.iter().filter(|(.., histogram)| histogram.count > 0) {
        panel(page, class, title, histogram)?;
    }
    writeln!(page, "</div>")
}

fn panel(page: &mut String, class: &str, title: &str, histogram: &Histogram) -> fmt::Result {
    writeln!(page, "<figure>\n<figcaption><b>{title}</b> {}</figcaption>", text(histogram))?;
    let bars = histogram.bars();
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(1).max(1);
    writeln!(page, "<div class=\"bars {class}\">")?;
    for bar in &bars {
        let height = bar.count as f64 / most as f64 * 100.0;
        let count = if bar.count == 0 { String::new() } else { bar.count.to_string() };
        let (from, to) = (show::time_mark(bar.from), show::time_mark(bar.to));
        // With many bars, only the powers of ten have room for a label.
        let label = if bars.len() <= MAX_LABELS || bar.is_decade { &to } else { "" };
        writeln!(
            page,
            "<span title=\"{from} to {to}\"><b>{count}</b><i style=\"height:{height:.1}%\"></i><em>{label}</em></span>"
        )?;
    }
    writeln!(page, "</div>\n</figure>")
}

fn text(histogram: &Histogram) -> String {
    let (least, most) = (show::time(histogram.least), show::time(histogram.most));
    let steps = number(histogram.count, "step");
    if histogram.count == 1 {
        return format!("{steps}, {most}");
    }
    format!("{steps}, {least} to {most}, mean {}", show::time(histogram.mean()))
}
