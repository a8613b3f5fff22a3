//! What a parser has to say besides its value: refusals and warnings, each with the path of the field.

use std::fmt;

/// One finding about one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: `filter_chains[0].filters[1].typed_config.route_config`, proto field names.
    pub path: String,
    /// What is wrong, with the offending value, and what to do: a lower-case fragment.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

/// Collects findings while a message is parsed; knows the path of the field under the parser's hands.
#[derive(Debug, Default)]
pub struct Report {
    path: Vec<String>,
    /// The value cannot be used.
    pub errors: Vec<Finding>,
    /// Set, and not honoured by culvert-proxy; the value can be used without it.
    pub warnings: Vec<Finding>,
}

impl Report {
    /// Runs `f` with `field` appended to the path.
    pub fn field<T>(&mut self, field: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(field.to_owned());
        let value = f(self);
        self.path.pop();
        value
    }

    /// Runs `f` with `field[index]` appended to the path.
    pub fn item<T>(&mut self, field: &str, index: usize, f: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(format!("{field}[{index}]"));
        let value = f(self);
        self.path.pop();
        value
    }

    /// Refuses the field at hand.
    pub fn error(&mut self, reason: impl Into<String>) {
        let path = self.path.join(".");
        self.errors.push(Finding { path, reason: reason.into() });
    }

    /// Says that the field at hand is set and not honoured.
    pub fn warn(&mut self, reason: impl Into<String>) {
        let path = self.path.join(".");
        self.warnings.push(Finding { path, reason: reason.into() });
    }
}

/// A parsed resource, or why there is none. Warnings come either way.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The value, or every reason why there is none (never empty).
    pub value: Result<T, Vec<Finding>>,
    /// Fields that are set and not honoured.
    pub warnings: Vec<Finding>,
}
