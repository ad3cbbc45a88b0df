//! What the API says, in two threads: one asks for memory and counters again and again, one reads events.
//!
//! Invariant: at most [`ROOM`] messages wait. A thread that finds no room waits until there is some, and one whose reader is
//! gone ends.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidevm_api::caller::{Answer, CallError, Caller, NextLine};
use tidevm_api::http::Method;

use super::view::{News, View};

/// Messages that wait.
const ROOM: usize = 256;

/// Time between two looks at the memory.
const PERIOD: Duration = Duration::from_millis(250);

/// Time between two questions that the guest answers: its counters and memory blocks.
const GUEST_PERIOD: Duration = Duration::from_secs(1);

/// Longest time until an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks once, and goes on asking in threads of its own.
///
/// # Errors
/// The first call fails.
pub fn listen(api: &Caller) -> Result<(View, Receiver<News>), CallError> {
    let mut view = View::new(Instant::now());
    view.take(News::Instance(get(api, "/")?.json()));
    view.take(memory(api, "/hotplug/memory")?);
    let (sender, receiver) = sync_channel(ROOM);
    let (asking, reading) = (api.clone(), api.clone());
    let events = sender.clone();
    thread::spawn(move || ask(&asking, &sender));
    thread::spawn(move || read(&reading, &events));
    Ok((view, receiver))
}

fn get(api: &Caller, target: &str) -> Result<Answer, CallError> {
    api.call(Method::Get, target, None, LIMIT)
}

fn memory(api: &Caller, target: &str) -> Result<News, CallError> {
    let asked = Instant::now();
    // A fault is JSON too, without regions: the machine has no hotplug memory, or was not started.
    Ok(News::Memory(asked, get(api, target)?.json()))
}

/// Asks until the API or the reader is gone.
fn ask(api: &Caller, news: &SyncSender<News>) {
    let mut guest_asked: Option<Instant> = None;
    loop {
        let start = Instant::now();
        let due = guest_asked.is_none_or(|asked| start - asked >= GUEST_PERIOD);
        let told = if due { ask_guest(api) } else { memory(api, "/hotplug/memory").map(|told| vec![told]) };
        if due {
            guest_asked = Some(start);
        }
        let told = told.unwrap_or_else(|error| vec![News::Ended(gone(&error))]);
        for told in told {
            let over = matches!(told, News::Ended(_));
            if news.send(told).is_err() || over {
                return;
            }
        }
        thread::sleep(PERIOD.saturating_sub(start.elapsed()));
    }
}

fn ask_guest(api: &Caller) -> Result<Vec<News>, CallError> {
    let instance = News::Instance(get(api, "/")?.json());
    let stats = get(api, "/stats")?;
    // A guest that stands still, or another kernel, tells none.
    let stats = if stats.is_done() { stats.json() } else { Value::Null };
    Ok(vec![instance, News::Stats(stats), memory(api, "/hotplug/memory?blocks=1")?])
}

/// Reads events until their end. The thread that asks tells of an end without a last event.
fn read(api: &Caller, news: &SyncSender<News>) {
    let Ok(Ok(mut lines)) = api.lines("/events", LIMIT) else { return };
    while let Ok(NextLine::Line(line)) = lines.next(None) {
        let event: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        let end = last_words(&event);
        if news.send(News::Event(event)).is_err() {
            return;
        }
        if let Some(why) = end {
            drop(news.send(News::Ended(why)));
            return;
        }
    }
}

/// A sentence about the end of the guest.
fn last_words(event: &Value) -> Option<String> {
    match event["event"].as_str()? {
        "death" => {
            Some(format!("the guest died: {}", event["reason"].as_str().unwrap_or("no reason was told")))
        }
        "powered_off" => Some("the guest powered off".to_owned()),
        _ => None,
    }
}

fn gone(error: &CallError) -> String {
    match error {
        CallError::Deadline { .. } => error.to_string(),
        _ => "the machine has ended".to_owned(),
    }
}
