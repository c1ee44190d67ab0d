//! Talking to whoever typed the command. The only place that prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool answers on its standard output"
)]

use std::io::{self, BufRead, IsTerminal as _, Write};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::CliError;

/// Where a command's words go and where its answers come from.
pub(super) trait Ui: Send {
    /// A line (or several) on standard output.
    fn say(&mut self, text: &str);
    /// A line on standard error.
    fn warn(&mut self, text: &str);
    /// Whether nobody reads what is said any more.
    fn is_gone(&self) -> bool {
        false
    }
    /// Asks and reads a line; `None` at the end of the input.
    fn read(&mut self, prompt: &str) -> io::Result<Option<String>>;
    /// The same, and what is typed is not shown.
    fn secret(&mut self, prompt: &str) -> io::Result<Option<String>> {
        self.read(prompt)
    }
    /// A line that the next one of its kind replaces.
    fn progress(&mut self, line: &str) {
        self.say(line);
    }
    /// Whether there is a place for lines that replace each other.
    fn is_terminal(&self) -> bool {
        false
    }
    /// Shows this in the place of what was shown last by it.
    fn redraw(&mut self, text: &str) {
        self.say(text);
    }
}

/// Standard input, output and error.
#[derive(Debug, Default)]
pub(super) struct Console {
    gone: bool,
    drawn: bool,
    /// The last line has no end yet.
    in_line: bool,
}

impl Ui for Console {
    fn say(&mut self, text: &str) {
        let after_progress = if std::mem::take(&mut self.in_line) {
            "\n"
        } else {
            ""
        };
        // A reader that went away (`| head`) is no reason to panic, but one to stop.
        self.gone |= writeln!(io::stdout(), "{after_progress}{text}").is_err();
    }

    fn progress(&mut self, line: &str) {
        if !self.is_terminal() {
            return self.say(line);
        }
        let mut out = io::stdout();
        self.in_line = true;
        self.gone |= write!(out, "\r{line}\x1b[K").and_then(|()| out.flush()).is_err();
    }

    fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    fn warn(&mut self, text: &str) {
        let _closed = writeln!(io::stderr(), "{text}");
    }

    fn is_gone(&self) -> bool {
        self.gone
    }

    fn read(&mut self, prompt: &str) -> io::Result<Option<String>> {
        let mut out = io::stdout();
        write!(out, "{prompt}")?;
        out.flush()?;
        let mut line = String::new();
        let bytes = io::stdin().lock().read_line(&mut line)?;
        Ok((bytes > 0).then(|| line.trim().to_owned()))
    }

    fn secret(&mut self, prompt: &str) -> io::Result<Option<String>> {
        let _quiet = Quiet::new();
        let typed = self.read(prompt);
        // The end of the line was not shown either.
        self.say("");
        typed
    }

    /// In place and without a flicker on a terminal; one after the other elsewhere.
    fn redraw(&mut self, text: &str) {
        if !io::stdout().is_terminal() {
            return self.say(text);
        }
        let home = if self.drawn { "\x1b[H" } else { "\x1b[2J\x1b[H" };
        self.drawn = true;
        let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
        let mut out = io::stdout();
        self.gone |= write!(out, "{home}{lines}\x1b[J")
            .and_then(|()| out.flush())
            .is_err();
    }
}

/// A terminal that does not show what is typed, until dropped.
struct Quiet(Option<Termios>);

impl Quiet {
    fn new() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else {
            return Self(None);
        };
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        // A terminal that cannot do that shows the password; better than none to type it into.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &quiet);
        Self(Some(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Asks until there is an answer; an empty one means `default`.
pub(super) fn ask(ui: &mut dyn Ui, question: &str, default: Option<&str>) -> Result<String, CliError> {
    let prompt = match default {
        Some(default) => format!("{question} [{default}]: "),
        None => format!("{question}: "),
    };
    loop {
        let line = ui
            .read(&prompt)
            .map_err(|_| CliError::Aborted)?
            .ok_or(CliError::Aborted)?;
        match (line.is_empty(), default) {
            (false, _) => return Ok(line),
            (true, Some(default)) => return Ok(default.to_owned()),
            (true, None) => {}
        }
    }
}

/// Asks for a yes; anything else is a no.
pub(super) fn confirm(ui: &mut dyn Ui, question: &str) -> Result<bool, CliError> {
    let line = ui
        .read(&format!("{question} [y/N]: "))
        .map_err(|_| CliError::Aborted)?;
    let line = line.ok_or(CliError::Aborted)?;
    Ok(matches!(line.to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
pub(super) mod script {
    //! A terminal that types prepared answers and remembers what it was shown.

    use std::{collections::VecDeque, io};

    #[derive(Debug, Default)]
    pub(in crate::cli) struct Script {
        pub(in crate::cli) answers: VecDeque<String>,
        pub(in crate::cli) shown: Vec<String>,
        /// Nobody reads beyond this many lines.
        pub(in crate::cli) reads: Option<usize>,
    }

    impl Script {
        pub(in crate::cli) fn typing(answers: &[&str]) -> Self {
            Self {
                answers: answers.iter().map(|text| (*text).to_owned()).collect(),
                shown: Vec::new(),
                reads: None,
            }
        }

        pub(in crate::cli) fn text(&self) -> String {
            self.shown.join("\n")
        }
    }

    impl super::Ui for Script {
        fn say(&mut self, text: &str) {
            self.shown.push(text.to_owned());
        }
        fn warn(&mut self, text: &str) {
            self.shown.push(format!("! {text}"));
        }
        fn is_gone(&self) -> bool {
            self.reads.is_some_and(|lines| self.shown.len() >= lines)
        }
        fn read(&mut self, prompt: &str) -> io::Result<Option<String>> {
            let answer = self.answers.pop_front();
            self.shown
                .push(format!("{prompt}{}", answer.as_deref().unwrap_or("<end>")));
            Ok(answer)
        }
    }
}
