//! Results on standard output, errors and progress on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use cr::Error;
use cr::supervise::protocol::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, SigmaskHow};
use serde::Serialize;

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
    colours: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, colours: io::stdout().is_terminal() && !no_color }
    }

    /// A result as JSON.
    pub(super) fn print_json(self, value: &impl Serialize) {
        self.print(&serde_json::to_string(value).expect("plain structures"));
    }

    /// A line (or some) of a result. That nobody reads on is no error: `cr list | head -1`.
    #[expect(clippy::unused_self, reason = "results go where the output says, like all others")]
    pub(super) fn print(self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// An error, in a sentence and where asked for in JSON.
    pub(super) fn error(self, error: &Error) {
        if self.json {
            let error = Failure::from(error);
            self.print_json(&serde_json::json!({ "error": error }));
        }
        // Refusals are many sentences.
        for line in error.to_string().lines() {
            eprintln!("cr: {line}");
        }
    }

    /// A table with these column titles, fit for a terminal and for `awk`.
    pub(super) fn table(self, titles: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if !self.colours {
            table.force_no_tty();
        }
        table.set_header(titles.iter().map(|title| self.title(title)));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }

    fn title(self, text: &str) -> Cell {
        let cell = Cell::new(text);
        if self.colours { cell.add_attribute(comfy_table::Attribute::Bold) } else { cell }
    }

    /// Prints a table without blanks at the ends of its lines.
    pub(super) fn print_table(self, table: &Table) {
        self.print(&table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n"));
    }

    /// A cell that is good or bad.
    pub(super) fn judged(self, text: &str, good: bool) -> Cell {
        let cell = Cell::new(text);
        match (self.colours, good) {
            (false, _) => cell,
            (true, true) => cell.fg(Color::Green),
            (true, false) => cell.fg(Color::Red),
        }
    }
}

/// A cell with a number.
pub(super) fn number(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// A number of bytes for people: `3.2 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Shows on a terminal that something takes its time; nothing in a pipe.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(super) fn start(message: impl Into<String>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner().with_message(message.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        // The thread that draws must leave signals to those who wait for them.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        bar.enable_steady_tick(Duration::from_millis(150));
        if let Ok(mask) = mask {
            let _ = mask.thread_set_mask();
        }
        Self(Some(bar))
    }

    /// Takes the line away.
    pub(super) fn finish(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1_048_575), "1.0 MiB");
        assert_eq!(bytes(268_435_456), "256.0 MiB");
        assert_eq!(bytes(3 << 40), "3.0 TiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
