//! A run told to a person: members as columns, events as rows.

use std::cell::RefCell;

use crate::exec::{Nanos, SECOND};

#[derive(Default)]
pub(crate) struct Story(RefCell<Vec<(Nanos, Option<usize>, String)>>);

const WIDTH: usize = 38;

impl Story {
    /// What a member has said a moment ago it need not say again.
    pub(crate) fn line(&self, at: Nanos, node: Option<usize>, text: String) {
        let mut lines = self.0.borrow_mut();
        let lately = lines.iter().rev().filter(|(_, who, _)| *who == node).take(4);
        let again = node.is_some() && lately.map(|(.., said)| said).any(|said| *said == text);
        if !again {
            lines.push((at, node, text));
        }
    }

    /// What was told so far.
    pub(crate) fn take(&self) -> Self {
        Self(RefCell::new(std::mem::take(&mut *self.0.borrow_mut())))
    }

    /// The rows since `from`.
    pub(crate) fn table(&self, members: usize, from: Nanos) -> String {
        let mut text = format!("{:>9}", "seconds");
        for member in 0..members {
            text += &format!(" | {:<WIDTH$}", format!("n{}", member + 1));
        }
        text.push('\n');
        for (at, node, what) in self.0.borrow().iter().filter(|(at, ..)| *at >= from) {
            let seconds = format!("{:>9.3}", *at as f64 / SECOND as f64);
            match node {
                None => text += &format!("{seconds} = {what}\n"),
                Some(node) => {
                    for (index, part) in wrap(what).into_iter().enumerate() {
                        let head = if index == 0 {
                            seconds.clone()
                        } else {
                            " ".repeat(9)
                        };
                        text += &head;
                        for column in 0..members {
                            let cell = if column == *node { part.as_str() } else { "" };
                            text += &format!(" | {cell:<WIDTH$}");
                        }
                        text.truncate(text.trim_end().len());
                        text.push('\n');
                    }
                }
            }
        }
        text
    }
}

/// Lines that fit into a column, broken at spaces.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let full = lines
            .last()
            .is_some_and(|line| !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
