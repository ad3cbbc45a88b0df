//! Numbers as text, and the marks of axes.

/// A size: `0`, `130 MiB`, `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    let units = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| bytes >> shift > 0) else {
        return if bytes == 0 { "0".to_owned() } else { format!("{bytes} B") };
    };
    let value = bytes as f64 / (1_u64 << shift) as f64;
    match value {
        _ if value.fract() == 0.0 || value >= 99.95 => format!("{value:.0} {unit}"),
        _ if value >= 9.995 => format!("{value:.1} {unit}"),
        _ => format!("{}\u{a0}{unit}", format!("{value:.2}").trim_end_matches('0').trim_end_matches('.')),
    }
    .replace(' ', "\u{a0}")
}

/// A time: `0 s`, `12 ms`, `1.24 s`, `2 min 5 s`.
pub fn time(seconds: f64) -> String {
    let text = match seconds {
        s if s <= 0.0 => "0 s".to_owned(),
        s if s < 0.000_999_5 => format!("{:.0} us", s * 1e6),
        s if s < 0.009_995 => format!("{:.1} ms", s * 1e3),
        s if s < 0.999_5 => format!("{:.0} ms", s * 1e3),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 99.95 => format!("{s:.1} s"),
        s if s < 600.0 => format!("{s:.0} s"),
        s if s < 36_000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    };
    text.replace(' ', "\u{a0}")
}

/// Marks of an axis of sizes from 0 on: at most five, a power of two apart, the last one at least `most`.
pub fn size_marks(most: u64) -> Vec<u64> {
    let most = most.clamp(1 << 12, 1 << 62);
    let step = (most.div_ceil(4)).next_power_of_two();
    (0..=most.div_ceil(step)).map(|mark| mark * step).collect()
}

/// Marks of an axis of times from 0 to `most`: three to seven of them, at 1, 2 or 5 times a power of ten.
pub fn time_marks(most: f64) -> Vec<f64> {
    let most = most.max(1e-6);
    let power = 10_f64.powf((most / 6.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| most / step <= 6.0);
    let step = step.unwrap_or(most);
    (0..=6).map(|mark| f64::from(mark) * step).filter(|mark| *mark <= most).collect()
}

/// A mark of an axis of times, in seconds, without needless digits.
pub fn time_mark(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        s if s < 0.001 => format!("{} us", digits(s * 1e6)),
        s if s < 1.0 => format!("{} ms", digits(s * 1e3)),
        s if s < 600.0 => format!("{} s", digits(s)),
        s if s < 36_000.0 => format!("{} min", digits(s / 60.0)),
        s => format!("{} h", digits(s / 3600.0)),
    }
    .replace(' ', "\u{a0}")
}

fn digits(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::{size, size_marks, time, time_mark, time_marks};

    fn plain(text: &str) -> String {
        text.replace('\u{a0}', " ")
    }

    #[test]
    fn numbers_have_about_three_digits() {
        let sizes = [
            (0, "0"),
            (1, "1 B"),
            (4096, "4 KiB"),
            (130 << 20, "130 MiB"),
            ((130 << 20) + (700 << 10), "131 MiB"),
            (3 << 29, "1.5 GiB"),
            ((10 << 30) + (1 << 29), "10.5 GiB"),
            (u64::MAX, "16 EiB"),
            ((1 << 30) + (1 << 20), "1 GiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(plain(&size(bytes)), text);
        }
        let times = [
            (0.0, "0 s"),
            (0.000_002, "2 us"),
            (0.001_5, "1.5 ms"),
            (0.25, "250 ms"),
            (1.234, "1.23 s"),
            (61.26, "61.3 s"),
            // A number that is rounded up to the next unit is in that unit.
            (0.000_999_7, "1.0 ms"),
            (0.009_997, "10 ms"),
            (0.999_7, "1.00 s"),
            (9.997, "10.0 s"),
            (99.97, "100 s"),
            (599.0, "599 s"),
            (3600.0, "60 min"),
            (1e12, "277777778 h"),
            (-1.0, "0 s"),
        ];
        for (seconds, text) in times {
            assert_eq!(plain(&time(seconds)), text);
        }
    }

    #[test]
    fn axes_have_a_few_round_marks() {
        let gib = |marks: &[u64]| marks.iter().map(|mark| mark << 30).collect::<Vec<u64>>();
        assert_eq!(size_marks(4 << 30), gib(&[0, 1, 2, 3, 4]));
        assert_eq!(size_marks((4 << 30) + 1), gib(&[0, 2, 4, 6]));
        for most in (0..64).map(|bit| 1_u64 << bit).chain([0, 3, u64::MAX]) {
            let marks = size_marks(most);
            assert!((2..=5).contains(&marks.len()), "{most}: {marks:?}");
            assert!(marks.last().is_some_and(|last| *last >= most.min(1 << 62)), "{most}: {marks:?}");
        }
        assert_eq!(time_marks(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        for most in [0.0, 0.001, 0.7, 1.0, 59.0, 12_345.0, 1e12] {
            assert!((3..=7).contains(&time_marks(most).len()), "{most}: {:?}", time_marks(most));
        }
        assert_eq!(
            [0.0, 0.25, 2.5, 1200.0].map(|mark| plain(&time_mark(mark))),
            ["0", "250 ms", "2.5 s", "20 min"]
        );
    }
}
