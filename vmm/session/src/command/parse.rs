//! Text to [`Command`]: words with their columns, then one function a command.
//!
//! Every word list (zones, comparisons, ...) is a table that parsing and printing share, so the
//! two cannot drift apart. Errors say what was expected at which column; columns count characters
//! from 1, as editors do.

use std::str::FromStr;
use std::time::Duration;

use tidevm_abi::{FaultStep, HogKind, ZoneName};

use super::quantity::{parse_duration, parse_size};
use super::{
    Command, Comparison, Expect, Hog, Metric, Name, NodeNumber, Resize, Target, Unit, ZoneCounter, pmem,
};

/// Why a line is not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
}

/// Words of the grammar and what they stand for.
type Table<T> = &'static [(&'static str, T)];

const VERBS: &[&str] = &[
    "resize", "plug", "unplug", "hog", "churn", "verify", "release", "wait", "expect", "stats", "check",
    "blocks", "readd", "sleep", "race", "inject", "pmem", "repeat",
];

pub(super) const HOG_KINDS: Table<HogKind> = &[
    ("movable", HogKind::Movable),
    ("unmovable", HogKind::Unmovable),
    ("pinned", HogKind::Pinned),
    ("contiguous", HogKind::Contiguous),
];

pub(super) const FAULT_STEPS: Table<FaultStep> = &[
    ("map-direct", FaultStep::MapDirect),
    ("map-memmap", FaultStep::MapMemmap),
    ("alloc-memmap", FaultStep::AllocMemmap),
    ("online", FaultStep::Online),
    ("isolate", FaultStep::Isolate),
    ("migrate", FaultStep::Migrate),
];

pub(super) const COMPARISONS: Table<Comparison> = &[
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("<", Comparison::Below),
    (">", Comparison::Above),
];

pub(super) const ZONES: Table<ZoneName> =
    &[("DMA32", ZoneName::Dma32), ("Normal", ZoneName::Normal), ("Movable", ZoneName::Movable)];

pub(super) const ZONE_COUNTERS: Table<ZoneCounter> = &[
    ("spanned", ZoneCounter::Spanned),
    ("present", ZoneCounter::Present),
    ("managed", ZoneCounter::Managed),
    ("free", ZoneCounter::Free),
];

pub(super) const PLAIN_METRICS: Table<Metric> = &[
    ("plugged", Metric::Plugged),
    ("requested", Metric::Requested),
    ("host.held", Metric::HostHeld),
    ("resets", Metric::Resets),
    ("memmap.boot_pages", Metric::MemmapBootPages),
    ("memmap.altmap_pages", Metric::MemmapAltmapPages),
    ("migrated", Metric::Migrated),
    ("blocks.online", Metric::BlocksOnline),
    ("zone.Device.spanned", Metric::DeviceSpanned),
    ("device.pages", Metric::DevicePages),
    ("device.refs", Metric::DeviceRefs),
    ("pcp.drains", Metric::PcpDrains),
    ("pcp.stranded", Metric::PcpStranded),
];

/// The word for `value`. Every value of the grammar's enums is in its table; the round-trip test
/// walks them all.
pub(super) fn text_of<T: PartialEq>(table: Table<T>, value: &T) -> &'static str {
    table.iter().find(|(_, entry)| entry == value).map_or("?", |(text, _)| text)
}

/// A word and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word<'t> {
    pub(crate) column: usize,
    pub(crate) text: &'t str,
}

impl Word<'_> {
    pub(crate) fn error(&self, expected: &str) -> SyntaxError {
        let found = self.text.escape_debug();
        SyntaxError { column: self.column, message: format!("expected {expected}, found `{found}`") }
    }
}

/// The words of one line that have not been read yet.
#[derive(Debug)]
pub(crate) struct Words<'t> {
    words: std::vec::IntoIter<Word<'t>>,
    end: usize,
}

/// What belongs together in one word: text, a comparison, or a brace alone.
#[derive(PartialEq, Eq)]
enum Class {
    Space,
    Comparison,
    Brace,
    Text,
}

fn class(c: char) -> Class {
    match c {
        _ if c.is_whitespace() => Class::Space,
        '=' | '!' | '<' | '>' => Class::Comparison,
        '{' | '}' => Class::Brace,
        _ => Class::Text,
    }
}

impl<'t> Words<'t> {
    /// Splits `line`, without its comment.
    pub(crate) fn new(line: &'t str) -> Words<'t> {
        let code = line.split('#').next().unwrap_or_default();
        let mut words = Vec::new();
        let (mut rest, mut column) = (code, 1);
        while let Some(first) = rest.chars().next() {
            let kind = class(first);
            let same = |c: char| class(c) == kind;
            let length = match kind {
                Class::Brace => 1,
                _ => rest.find(|c| !same(c)).unwrap_or(rest.len()),
            };
            let (text, tail) = rest.split_at(length);
            if kind != Class::Space {
                words.push(Word { column, text });
            }
            column += text.chars().count();
            rest = tail;
        }
        Words { words: words.into_iter(), end: code.trim_end().chars().count() + 1 }
    }

    pub(crate) fn peek(&self) -> Option<Word<'t>> {
        self.words.as_slice().first().copied()
    }

    /// The next word; without one, an error that says what was expected.
    pub(crate) fn next(&mut self, expected: &str) -> Result<Word<'t>, SyntaxError> {
        self.words.next().ok_or_else(|| SyntaxError {
            column: self.end,
            message: format!("expected {expected}, found the end of the line"),
        })
    }

    /// Takes the next word if it is `text`.
    pub(crate) fn take(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|word| word.text == text);
        if found {
            self.words.next();
        }
        found
    }

    /// Takes the next word, which has to be `text`.
    pub(crate) fn keyword(&mut self, text: &str) -> Result<(), SyntaxError> {
        let expected = format!("`{text}`");
        let word = self.next(&expected)?;
        if word.text == text { Ok(()) } else { Err(word.error(&expected)) }
    }

    /// The next word as `read` takes it.
    pub(crate) fn value<T>(
        &mut self,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SyntaxError> {
        let word = self.next(expected)?;
        read(word.text).ok_or_else(|| word.error(expected))
    }

    fn one_of<T: Copy>(&mut self, what: &str, table: Table<T>) -> Result<T, SyntaxError> {
        let expected = format!("{what} ({})", list(table.iter().map(|(text, _)| *text)));
        self.value(&expected, |word| table.iter().find(|(text, _)| *text == word).map(|(_, value)| *value))
    }
}

fn list(words: impl Iterator<Item = &'static str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

impl FromStr for Command {
    type Err = SyntaxError;

    fn from_str(line: &str) -> Result<Command, SyntaxError> {
        let mut words = Words::new(line);
        let command = parse_command(&mut words)?;
        match words.peek() {
            None => Ok(command),
            Some(word) => Err(word.error("the end of the line")),
        }
    }
}

/// Reads one command and leaves what follows it.
pub(crate) fn parse_command(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let verb = words.next("a command")?;
    match verb.text {
        "resize" => resize(words, Target::To, "a size such as 2G"),
        "plug" => resize(words, Target::Plug, "a size above 0 such as 512M"),
        "unplug" => resize(words, Target::Unplug, "a size above 0 such as 512M"),
        "hog" => hog(words),
        "churn" => churn(words),
        "verify" => Ok(Command::Verify(name(words)?)),
        "release" => Ok(Command::Release(name(words)?)),
        "wait" => Ok(Command::Wait(name(words)?)),
        "expect" => expect(words),
        "stats" => Ok(Command::Stats),
        "check" => Ok(Command::Check),
        "blocks" => Ok(Command::Blocks),
        "readd" => readd(words),
        "sleep" => Ok(Command::Sleep(duration(words)?)),
        "race" => race(words),
        "inject" => inject(words),
        "pmem" => pmem::parse(words).map(Command::Pmem),
        _ => Err(verb.error(&format!("a command ({})", list(VERBS.iter().copied())))),
    }
}

fn resize(words: &mut Words<'_>, target: fn(u64) -> Target, what: &str) -> Result<Command, SyntaxError> {
    let read = |text: &str| {
        let target = target(parse_size(text)?);
        let relative = !matches!(target, Target::To(_));
        (!relative || target.size() > 0).then_some(target)
    };
    let target = words.value(what, read)?;
    let (device, within) = suffixes(words)?;
    Ok(Command::Resize(Resize { target, device, within }))
}

fn hog(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let whole_pages = |size: &u64| *size > 0 && size.is_multiple_of(4096);
    let size = words
        .value("a size in whole pages of 4 KiB such as 300M", |text| parse_size(text).filter(whole_pages))?;
    let kind = words.one_of("a kind of pages", HOG_KINDS)?;
    let scattered = kind != HogKind::Contiguous && words.take("scattered");
    let full = words.take("full");
    words.keyword("as")?;
    Ok(Command::Hog(Hog { size, kind, scattered, full, name: name(words)? }))
}

fn churn(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let threads = count(words, "a number of threads")?;
    let word = words.next("`threads`")?;
    if !matches!(word.text, "thread" | "threads") {
        return Err(word.error("`threads`"));
    }
    words.keyword("for")?;
    let time = words.value("a duration above 0 such as 200ms, 5s or 2m", |text| {
        parse_duration(text).filter(|time| !time.is_zero())
    })?;
    words.keyword("as")?;
    Ok(Command::Churn { threads, time, name: name(words)? })
}

fn expect(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let plain = list(PLAIN_METRICS.iter().map(|(text, _)| *text));
    let zones = "[node.N.]zone.{DMA32,Normal,Movable}.{spanned,present,managed,free}";
    let init = "node.N.init.{local,remote}";
    let metric = words.value(&format!("a metric ({plain}, {zones}, {init})"), metric)?;
    let comparison = words.one_of("a comparison", COMPARISONS)?;
    let value = match metric.unit() {
        Unit::Bytes => words.value("a size such as 2G", parse_size)?,
        Unit::Count => words.value(&format!("a number ({metric} is no size)"), |text| text.parse().ok())?,
    };
    let (device, within) = suffixes(words)?;
    Ok(Command::Expect(Expect { metric, comparison, value, device, within }))
}

fn metric(text: &str) -> Option<Metric> {
    if let Some((_, metric)) = PLAIN_METRICS.iter().find(|(word, _)| *word == text) {
        return Some(*metric);
    }
    if let Some(text) = text.strip_prefix("node.") {
        let (node, text) = text.split_once('.')?;
        let node = NodeNumber::new(node.parse().ok()?)?;
        return match text {
            "init.local" => Some(Metric::InitLocal(node)),
            "init.remote" => Some(Metric::InitRemote(node)),
            text => zone_counter(text).map(|(zone, counter)| Metric::NodeZone(node, zone, counter)),
        };
    }
    zone_counter(text).map(|(zone, counter)| Metric::Zone(zone, counter))
}

/// `zone.NAME.COUNTER`.
fn zone_counter(text: &str) -> Option<(ZoneName, ZoneCounter)> {
    let (zone, counter) = text.strip_prefix("zone.")?.split_once('.')?;
    let (_, zone) = ZONES.iter().find(|(word, _)| *word == zone)?;
    let (_, counter) = ZONE_COUNTERS.iter().find(|(word, _)| *word == counter)?;
    Some((*zone, *counter))
}

fn race(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let cycles = count(words, "a number of cycles")?;
    let word = words.next("`cycles`")?;
    if matches!(word.text, "cycle" | "cycles") {
        Ok(Command::Race { cycles })
    } else {
        Err(word.error("`cycles`"))
    }
}

fn inject(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let step = words.one_of("a step", FAULT_STEPS)?;
    let number = |words: &mut Words<'_>| words.value("a number of attempts", |text| text.parse().ok());
    let after = if words.take("after") { number(words)? } else { 0 };
    Ok(Command::Inject { step, after })
}

fn readd(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let size = words.value("a size above 0 such as 1G", |text| parse_size(text).filter(|size| *size > 0))?;
    words.keyword("at")?;
    let addr = words.value("an address such as 4G", parse_size)?;
    Ok(Command::Readd { size, addr })
}

/// `device N` and `within DURATION`, each at most once, in any order.
fn suffixes(words: &mut Words<'_>) -> Result<(usize, Option<Duration>), SyntaxError> {
    let (mut device, mut within) = (None, None);
    loop {
        if device.is_none() && words.take("device") {
            device = Some(words.value("the number of a device", |text| text.parse().ok())?);
        } else if within.is_none() && words.take("within") {
            within = Some(duration(words)?);
        } else {
            return Ok((device.unwrap_or(0), within));
        }
    }
}

fn duration(words: &mut Words<'_>) -> Result<Duration, SyntaxError> {
    words.value("a duration such as 200ms, 5s or 2m", parse_duration)
}

/// A whole number, at least 1.
pub(crate) fn count(words: &mut Words<'_>, what: &str) -> Result<u32, SyntaxError> {
    words.value(&format!("{what}, at least 1"), |text| text.parse().ok().filter(|count| *count > 0))
}

pub(super) fn name(words: &mut Words<'_>) -> Result<Name, SyntaxError> {
    words.value("a name (a letter, then letters, digits, _ or -)", Name::new)
}
