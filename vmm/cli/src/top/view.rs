//! What is seen: the memory of the last minutes, the regions as they are, counters, and the last events.
//!
//! Pure: messages in, numbers out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidevm_abi::Size;
use tidevm_machine::printable;

use crate::ctl::tell;

/// The time that the chart shows.
pub const SHOWN: Duration = Duration::from_secs(120);

/// Most points of the chart.
const MAX_POINTS: usize = 1000;

/// Most events that are kept.
const MAX_EVENTS: usize = 100;

/// Bytes of a page of the guest.
const PAGE: u64 = 4096;

/// What the API said.
#[derive(Clone, Debug)]
pub enum News {
    /// `GET /`.
    Instance(Value),
    /// `GET /hotplug/memory`, and when it was asked for.
    Memory(Instant, Value),
    /// The guest's counters.
    Stats(Value),
    /// A line of `GET /events`.
    Event(Value),
    /// The API is gone, for this reason.
    Ended(String),
}

/// Memory of all regions at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Since the start of this program.
    pub at: Duration,
    pub requested: u64,
    pub plugged: u64,
    pub used: Option<u64>,
    pub held: Option<u64>,
}

/// A region as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    pub address: u64,
    pub size: Size,
    pub requested: Size,
    pub plugged: Size,
    pub guest_uses: Option<Size>,
    pub held: Option<Size>,
    /// It is at its target.
    pub converged: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// The guest is at work, as far as is known.
    pub at_work: bool,
    pub driver: bool,
}

/// Memory blocks side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub address: u64,
    pub count: u64,
    pub size: u64,
    pub state: String,
    pub zone: String,
    pub plugged: u64,
}

/// What is seen.
#[derive(Clone, Debug)]
pub struct View {
    start: Instant,
    pub id: String,
    pub state: String,
    pub points: VecDeque<Point>,
    pub regions: Vec<Region>,
    /// Memory blocks of the regions, if the guest has told them.
    pub runs: Option<Vec<Run>>,
    /// The guest did not tell its memory blocks when it was last asked: it stands still, or works.
    pub silent: bool,
    /// Counters of the guest by name.
    pub counters: Vec<(String, u64)>,
    used: Option<u64>,
    /// The last events, the newest last.
    pub events: VecDeque<String>,
}

impl View {
    /// Nothing, at `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            id: String::new(),
            state: String::new(),
            points: VecDeque::new(),
            regions: Vec::new(),
            runs: None,
            silent: false,
            counters: Vec::new(),
            used: None,
            events: VecDeque::new(),
        }
    }

    /// Takes what the API said.
    pub fn take(&mut self, news: News) {
        match news {
            News::Instance(instance) => {
                self.id = text(&instance["id"]);
                self.state = text(&instance["state"]);
            }
            News::Memory(asked, memory) => self.memory(asked, &memory),
            News::Stats(guest) => self.stats(&guest),
            News::Event(event) => {
                self.events.push_back(line(&tell::event(&event)));
                if self.events.len() > MAX_EVENTS {
                    self.events.pop_front();
                }
            }
            News::Ended(_) => {}
        }
    }

    fn memory(&mut self, asked: Instant, memory: &Value) {
        self.regions = memory["regions"].as_array().into_iter().flatten().map(region).collect();
        if let Some(blocks) = memory.get("blocks") {
            let hotplugged = |block: &&Value| block["boot"] != true;
            let told = blocks.as_array().map(|runs| runs.iter().filter(hotplugged).map(run).collect());
            self.silent = told.is_none();
            self.runs = told.or_else(|| self.runs.take());
        }
        let sum = |part: fn(&Region) -> Size| {
            self.regions.iter().map(part).map(|size| size.0).fold(0, u64::saturating_add)
        };
        let mut held = self.regions.iter().map(|region| region.held.map(|size| size.0));
        self.points.push_back(Point {
            at: asked.saturating_duration_since(self.start),
            requested: sum(|region| region.requested),
            plugged: sum(|region| region.plugged),
            used: self.used,
            held: held.try_fold(0_u64, |sum, held| Some(sum.saturating_add(held?))),
        });
        if self.points.len() > MAX_POINTS {
            self.points.pop_front();
        }
    }

    fn stats(&mut self, guest: &Value) {
        // A guest that does not answer now is shown by what it told before.
        if !guest.is_object() {
            return;
        }
        let movable = &guest["zones"]["Movable"];
        let pages = |key: &str| movable[key].as_u64().unwrap_or(0);
        let used = pages("managed").saturating_sub(pages("free").saturating_add(pages("pcp")));
        self.used = movable.is_object().then(|| used.saturating_mul(PAGE));
        let numbers = guest.as_object().into_iter().flatten();
        self.counters = numbers.filter_map(|(key, value)| Some((line(key), value.as_u64()?))).collect();
    }

    /// The newest point.
    pub fn now(&self) -> Point {
        self.points.back().copied().unwrap_or_default()
    }
}

fn text(value: &Value) -> String {
    line(value.as_str().unwrap_or("-"))
}

/// A text that cannot command a terminal, in one line.
fn line(text: &str) -> String {
    printable(text.as_bytes()).replace('\n', " ")
}

fn region(region: &Value) -> Region {
    let bytes = |key: &str| region[key].as_u64().map(Size);
    Region {
        address: region["address"].as_u64().unwrap_or(0),
        size: tell::mib(&region["total_size_mib"]),
        requested: tell::mib(&region["requested_size_mib"]),
        plugged: tell::mib(&region["plugged_size_mib"]),
        guest_uses: bytes("guest_usable"),
        held: bytes("host_held"),
        converged: region["converged"] == true,
        reason: region["reason"]["text"].as_str().map(line),
        at_work: region["reason"]["kind"] == "driver_busy",
        driver: region["driver"] == true,
    }
}

fn run(block: &Value) -> Run {
    let number = |key: &str| block[key].as_u64().unwrap_or(0);
    Run {
        address: number("address"),
        count: number("count"),
        size: number("size"),
        state: text(&block["state"]),
        zone: text(&block["zone"]),
        // A guest that does not tell it has it all, as far as is known.
        plugged: block["plugged"].as_u64().unwrap_or(number("size")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::{MAX_EVENTS, MAX_POINTS, News, Point, View};

    #[test]
    fn answers_become_a_view() {
        let start = Instant::now();
        let mut view = View::new(start);
        view.take(News::Instance(json!({ "id": "vm-1", "state": "Running" })));
        view.take(News::Stats(json!({
            "zones": { "Movable": { "managed": 1000, "free": 700, "pcp": 50 } }, "pages_migrated": 7,
        })));
        let region = |held| {
            json!({
                "address": 4_294_967_296_u64, "total_size_mib": 1024, "requested_size_mib": 0, "plugged_size_mib": 128,
                "host_held": held, "converged": false, "driver": true, "reason": { "text": "2 pages\n\u{1b}[2Jcannot move" },
            })
        };
        let run = json!({ "address": 1, "count": 2, "size": 3, "boot": false, "state": "online", "zone": "Movable", "plugged": 3 });
        view.take(News::Memory(
            start + Duration::from_secs(3),
            json!({ "regions": [region(5), region(6)], "blocks": [{ "boot": true }, run] }),
        ));
        let expected = Point {
            at: Duration::from_secs(3),
            requested: 0,
            plugged: 256 << 20,
            used: Some(250 * 4096),
            held: Some(11),
        };
        assert_eq!(view.now(), expected);
        let reason = view.regions[0].reason.clone().expect("a reason");
        assert!(!reason.contains(['\n', '\u{1b}']), "{reason:?}");
        assert_eq!(
            (view.runs.as_ref().map(Vec::len), &view.counters[..]),
            (Some(1), &[("pages_migrated".to_owned(), 7)][..])
        );
        // Without the question for blocks the last ones stay, and also when the guest does not tell them.
        view.take(News::Memory(start, json!({ "regions": [region(5)] })));
        assert!(view.runs.is_some());
        view.take(News::Memory(start, json!({ "regions": [], "blocks": null })));
        assert_eq!((view.runs.is_some(), view.silent, view.now().held), (true, true, Some(0)));
        view.take(News::Memory(start, json!({ "fault_message": "Device not found" })));
        assert!(view.regions.is_empty());
    }

    #[test]
    fn nothing_grows_with_time() {
        let mut view = View::new(Instant::now());
        for number in 0..3000 {
            view.take(News::Memory(Instant::now(), json!({ "regions": [] })));
            view.take(News::Event(json!({ "event": "reset", "resets": number })));
        }
        assert_eq!((view.points.len(), view.events.len()), (MAX_POINTS, MAX_EVENTS));
        assert_eq!(view.events.back().map(String::as_str), Some("the guest was reset, resets: 2999"));
    }
}
