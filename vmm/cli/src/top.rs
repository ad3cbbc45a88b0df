//! `tidevm top`: the memory of a running machine, live in a terminal.
//!
//! Mirrors `top` and `htop` in form. Three threads: two read the API and send what they hear over a channel of bounded
//! length; this one draws and reads keys. So a machine that answers slowly does not hold up a key.
//!
//! Invariants: the terminal is given back in every case, an end by a signal included. What the API says cannot command the
//! terminal. Nothing that is kept grows with time.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tidevm_api::caller::{CallError, Caller};

use source::listen;
use view::{News, View};

mod draw;
mod source;
mod view;

/// Longest time from a change to its picture.
const FRAME: Duration = Duration::from_millis(100);

/// Signals that end it.
const SIGNALS: [i32; 3] =
    [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT];

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Standard input or output is a file or a pipe.
    #[error("top needs a terminal for input and output; `tidevm ctl --api-sock PATH watch` writes lines")]
    NoTerminal,
    /// The API cannot be reached, or does not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The terminal cannot be used.
    #[error("cannot use the terminal: {0}")]
    Terminal(#[from] io::Error),
}

impl TopError {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::NoTerminal => 2,
            Self::Call(_) => 3,
            Self::Terminal(_) => 1,
        }
    }
}

/// Shows the machine behind `socket` until a key, a signal or the end of the machine. Returns the exit status, and a sentence
/// about the end unless a key asked for it.
///
/// # Errors
/// [`TopError`].
pub fn run(socket: &Path) -> Result<(u8, Option<String>), TopError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    let signal = Arc::new(AtomicUsize::new(0));
    for number in SIGNALS {
        let value = usize::try_from(number).unwrap_or_default();
        signal_hook::flag::register_usize(number, Arc::clone(&signal), value)?;
    }
    // Before the terminal is taken, so that an error stands where the shell does.
    let (view, news) = listen(&Caller::new(socket))?;
    let mut terminal = ratatui::try_init()?;
    let end = watch(&mut terminal, view, &news, &signal);
    ratatui::try_restore()?;
    Ok(end?)
}

/// Draws until the end.
fn watch(
    terminal: &mut DefaultTerminal,
    mut view: View,
    news: &Receiver<News>,
    signal: &AtomicUsize,
) -> io::Result<(u8, Option<String>)> {
    loop {
        terminal.draw(|frame| draw::draw(frame, &view))?;
        if event::poll(FRAME)? && asks_to_quit(&event::read()?) {
            return Ok((0, None));
        }
        let signal = signal.load(Ordering::Relaxed);
        if signal != 0 {
            return Ok((u8::try_from(128 + signal).unwrap_or(u8::MAX), None));
        }
        loop {
            match news.try_recv() {
                Ok(News::Ended(why)) => return Ok((0, Some(why))),
                Ok(news) => view.take(news),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok((0, Some("the machine has ended".to_owned()))),
            }
        }
    }
}

/// `q`, Escape and Ctrl-C. A change of the terminal's size is seen at the next picture.
fn asks_to_quit(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let quits = matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc) || control_c;
    quits && key.kind != KeyEventKind::Release
}
