//! Talking to whoever typed the command. The only place that prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool answers on its standard output"
)]

use std::io::{self, BufRead, Write};

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
}

/// Standard input, output and error.
#[derive(Debug, Default)]
pub(super) struct Console {
    gone: bool,
}

impl Ui for Console {
    fn say(&mut self, text: &str) {
        // A reader that went away (`| head`) is no reason to panic, but one to stop.
        self.gone |= writeln!(io::stdout(), "{text}").is_err();
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
