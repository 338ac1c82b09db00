//! The place where the fleet is drawn: a terminal, redrawn in one piece, or plain lines.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use crate::snapshot::Snapshot;
use crate::view;

const PLAIN_INTERVAL: Duration = Duration::from_secs(3);
/// Once all are Ready, plain lines are printed rarely.
const PLAIN_QUIET_INTERVAL: Duration = Duration::from_secs(60);
const FALLBACK_SIZE: (usize, usize) = (80, 24);

/// The place.
pub(crate) enum Screen {
    /// Redraws over the lines that it drew last.
    Terminal { drawn_lines: usize },
    /// A line now and then.
    Plain {
        last: Option<Instant>,
        last_text: String,
    },
}

impl Screen {
    /// A terminal if standard output is one that can be redrawn.
    pub(crate) fn new() -> Self {
        let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
        if stdout().is_terminal() && !dumb {
            return Self::Terminal { drawn_lines: 0 };
        }
        Self::Plain {
            last: None,
            last_text: String::new(),
        }
    }

    /// Draws, or prints a line if the last one is a while ago.
    pub(crate) fn draw(&mut self, snapshot: &Snapshot) {
        match self {
            Self::Terminal { drawn_lines } => *drawn_lines = redraw(*drawn_lines, snapshot),
            Self::Plain { last, last_text } => {
                let complete = snapshot.expected > 0 && snapshot.ready() == snapshot.expected;
                let interval = if complete {
                    PLAIN_QUIET_INTERVAL
                } else {
                    PLAIN_INTERVAL
                };
                if last.is_none_or(|last| last.elapsed() >= interval) {
                    *last_text = view::one_line(snapshot);
                    *last = Some(Instant::now());
                    emit(&format!("{last_text}\n"));
                }
            }
        }
    }

    /// Draws whatever the time.
    pub(crate) fn draw_last(&mut self, snapshot: &Snapshot) {
        if let Self::Plain { last, .. } = self {
            *last = None;
        }
        self.draw(snapshot);
    }

    /// Keeps what is drawn; the next output is drawn below.
    pub(crate) fn finish(&mut self) {
        if let Self::Terminal { drawn_lines } = self
            && *drawn_lines > 0
        {
            *drawn_lines = 0;
            emit("\x1b[?25h");
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Writes one frame over the last and returns the number of its lines.
fn redraw(drawn_lines: usize, snapshot: &Snapshot) -> usize {
    let (width, height) = size();
    let mut lines = view::lines(snapshot, width);
    // More lines than the terminal has would scroll, and could not be redrawn.
    let hidden = lines.len().saturating_sub(height.saturating_sub(1).max(1));
    lines.drain(..hidden);
    // One write, inside a synchronized update where the terminal supports it, with each line erased only behind its
    // new text: nothing flickers.
    let mut frame = String::from("\x1b[?2026h\x1b[?25l\r");
    if drawn_lines > 0 {
        frame.push_str(&format!("\x1b[{drawn_lines}A"));
    }
    for line in &lines {
        frame.push_str(line);
        frame.push_str("\x1b[K\r\n");
    }
    frame.push_str("\x1b[J\x1b[?2026l");
    emit(&frame);
    lines.len()
}

/// Columns and rows.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => FALLBACK_SIZE,
    }
}

/// A closed output is no reason to end: the fleet is what matters.
fn emit(text: &str) {
    let mut out = stdout().lock();
    let _written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
