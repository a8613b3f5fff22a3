//! The API's validation rules (protoc-gen-validate options), read by reflection.
//!
//! Messages inside of messages are descended into, and so are `Any`s of known types; an `Any` of an unknown type has no
//! rules.

mod numbers;
mod strings;
mod times;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;

use prost::Name;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

use crate::rules::field_rules::Type;
use crate::rules::{EnumRules, FieldRules, MapRules, RepeatedRules};
use crate::{Any, annotations, pool, type_url};

/// How deep `Any`s and messages are followed: a bound on the stack. A document cannot be nested as deeply; bytes can.
const MAX_DEPTH: usize = 200;

/// A violated rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Proto field names: `filter_chains[0].filters[1].typed_config.stat_prefix`.
    pub path: String,
    /// What is wrong, with the value: a lower-case fragment.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

/// Every violated rule of a typed message and what it contains, `Any`s of known types included.
#[must_use]
pub fn validate<M: Name>(message: &M) -> Vec<Violation> {
    validate_any(&Any { type_url: M::type_url(), value: message.encode_to_vec().into() })
}

/// Every violated rule of the message in an `Any`; nothing if its type is not known. Bytes that do not decode are a violation.
#[must_use]
pub fn validate_any(any: &Any) -> Vec<Violation> {
    let mut checker = Checker::default();
    checker.any(&any.type_url, &any.value);
    checker.violations
}

/// Every violated rule of a message and what it contains.
#[must_use]
pub fn validate_dynamic(message: &DynamicMessage) -> Vec<Violation> {
    let mut checker = Checker::default();
    checker.message(message);
    checker.violations
}

#[derive(Default)]
struct Checker {
    path: String,
    depth: usize,
    violations: Vec<Violation>,
}

impl Checker {
    fn report(&mut self, reason: impl Into<String>) {
        self.violations.push(Violation { path: self.path.clone(), reason: reason.into() });
    }

    fn report_if(&mut self, finding: Option<String>) {
        if let Some(reason) = finding {
            self.report(reason);
        }
    }

    fn at(&mut self, step: &str, f: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        f(self);
        self.path.truncate(length);
    }

    fn any(&mut self, type_url: &str, value: &bytes::Bytes) {
        let Some(descriptor) = pool::message(type_url) else { return };
        match DynamicMessage::decode(descriptor, value.clone()) {
            Ok(message) => self.message(&message),
            Err(error) => self.report(format!("{} does not decode: {error}", type_url::message_name(type_url))),
        }
    }

    fn message(&mut self, message: &DynamicMessage) {
        if self.depth >= MAX_DEPTH {
            return self.report(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        let descriptor = message.descriptor();
        if descriptor.full_name() == "google.protobuf.Any" {
            if let (Some(url), Some(value)) = (message.get_field_by_number(1), message.get_field_by_number(2))
                && let (Some(url), Some(value)) = (url.as_str(), value.as_bytes())
            {
                self.any(url, value);
            }
        } else {
            self.fields(message);
        }
        self.depth -= 1;
    }

    fn fields(&mut self, message: &DynamicMessage) {
        let descriptor = message.descriptor();
        let annotations = annotations::of(&descriptor);
        for oneof in &annotations.required_oneofs {
            if !oneof.fields().any(|field| message.has_field(&field)) {
                let names: Vec<String> = oneof.fields().map(|field| field.name().to_owned()).collect();
                self.report(format!("one of {} is required", names.join(", ")));
            }
        }
        // Rules on what is not set: required messages, and the zero of fields without presence.
        for (number, rules) in annotations.all_rules() {
            let Some(field) = descriptor.get_field(number) else { continue };
            if message.has_field(&field) || field.containing_oneof().is_some() {
                continue;
            }
            self.at(field.name(), |checker| match field.kind() {
                _ if field.is_list() || field.is_map() => checker.field(&field, &field.default_value(), Some(rules)),
                Kind::Message(_) if required(rules) => checker.report("is required"),
                Kind::Message(_) => {}
                _ => checker.field(&field, &field.default_value(), Some(rules)),
            });
        }
        for (field, value) in message.fields() {
            let rules = annotations.rules(&field);
            self.at(field.name(), |checker| checker.field(&field, value, rules));
        }
    }

    fn field(&mut self, field: &FieldDescriptor, value: &Value, rules: Option<&FieldRules>) {
        match (value, rules.and_then(|rules| rules.r#type.as_ref())) {
            (Value::List(items), Some(Type::Repeated(list))) => self.repeated(items, &field.kind(), list),
            (Value::List(items), _) => {
                for (index, item) in items.iter().enumerate() {
                    self.at(&format!("[{index}]"), |checker| checker.value(item, &field.kind(), None));
                }
            }
            (Value::Map(map), found) => {
                let Some(entry) = field.kind().as_message().cloned() else { return };
                let none = MapRules::default();
                let rules = if let Some(Type::Map(rules)) = found { &**rules } else { &none };
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                self.map(&entries, (&entry.map_entry_key_field().kind(), &entry.map_entry_value_field().kind()), rules);
            }
            (value, _) => self.value(value, &field.kind(), rules),
        }
    }

    fn repeated(&mut self, items: &[Value], kind: &Kind, rules: &RepeatedRules) {
        if rules.ignore_empty() && items.is_empty() {
            return;
        }
        self.count(items.len(), rules.min_items, rules.max_items, "items");
        if rules.unique() {
            let mut seen = HashSet::new();
            for (index, item) in items.iter().enumerate() {
                if !seen.insert(format!("{item:?}")) {
                    self.at(&format!("[{index}]"), |checker| checker.report("stands twice; items must differ"));
                }
            }
        }
        for (index, item) in items.iter().enumerate() {
            self.at(&format!("[{index}]"), |checker| checker.value(item, kind, rules.items.as_deref()));
        }
    }

    fn map(&mut self, entries: &[(&MapKey, &Value)], (key_kind, value_kind): (&Kind, &Kind), rules: &MapRules) {
        if rules.ignore_empty() && entries.is_empty() {
            return;
        }
        self.count(entries.len(), rules.min_pairs, rules.max_pairs, "entries");
        for (key, value) in entries {
            let key = Value::from(MapKey::clone(key));
            let step = match &key {
                Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
                other => other.to_string(),
            };
            self.at(&format!("[{step}]"), |checker| {
                checker.value(&key, key_kind, rules.keys.as_deref());
                checker.value(value, value_kind, rules.values.as_deref());
            });
        }
    }

    fn count(&mut self, count: usize, min: Option<u64>, max: Option<u64>, what: &str) {
        let count = count as u64;
        if let Some(min) = min.filter(|min| count < *min) {
            self.report(format!("has {count} {what}; at least {min} needed"));
        }
        if let Some(max) = max.filter(|max| count > *max) {
            self.report(format!("has {count} {what}; at most {max} allowed"));
        }
    }

    /// One value by its rules, then what it contains by theirs.
    fn value(&mut self, value: &Value, kind: &Kind, rules: Option<&FieldRules>) {
        if let Some(check) = rules.and_then(|rules| rules.r#type.as_ref()) {
            match value {
                Value::Message(message) => self.message_rules(message, check),
                value => self.scalar_rules(value, kind, check),
            }
        }
        let skip = rules.and_then(|rules| rules.message.as_ref()).is_some_and(crate::rules::MessageRules::skip);
        if let (Value::Message(message), false) = (value, skip) {
            self.message(message);
        }
    }

    fn scalar_rules(&mut self, value: &Value, kind: &Kind, check: &Type) {
        match (check, value) {
            (Type::String(rules), Value::String(text)) => {
                strings::string(text, rules).into_iter().for_each(|r| self.report(r))
            }
            (Type::Bytes(rules), Value::Bytes(bytes)) => {
                strings::bytes(bytes, rules).into_iter().for_each(|r| self.report(r))
            }
            (Type::Bool(rules), Value::Bool(found)) => {
                if let Some(wanted) = rules.r#const.filter(|wanted| wanted != found) {
                    self.report(format!("must be {wanted}"));
                }
            }
            (Type::Enum(rules), Value::EnumNumber(number)) => self.report_if(enumeration(*number, kind, rules)),
            (check, value) => self.report_if(numbers::check(check, value)),
        }
    }

    /// Rules on a message as a value: a duration, a time, an `Any`, or what a wrapper wraps.
    fn message_rules(&mut self, message: &DynamicMessage, check: &Type) {
        match check {
            Type::Duration(rules) => self.report_if(times::duration(message, rules)),
            Type::Timestamp(rules) => self.report_if(times::timestamp(message, rules)),
            Type::Any(rules) => {
                let url = message.get_field_by_number(1).and_then(|url| url.as_str().map(str::to_owned));
                let url = url.unwrap_or_default();
                if (!rules.r#in.is_empty() && !rules.r#in.contains(&url)) || rules.not_in.contains(&url) {
                    self.report(format!("type {url:?} is not allowed here"));
                }
            }
            check => {
                let wrapped = message.descriptor().get_field(1);
                let wrapper = message.descriptor().full_name().starts_with("google.protobuf.");
                if let Some(field) = wrapped.filter(|_| wrapper) {
                    self.scalar_rules(&message.get_field(&field), &field.kind(), check);
                }
            }
        }
    }
}

fn required(rules: &FieldRules) -> bool {
    rules.message.as_ref().is_some_and(crate::rules::MessageRules::required)
        || match &rules.r#type {
            Some(Type::Any(rules)) => rules.required(),
            Some(Type::Duration(rules)) => rules.required(),
            Some(Type::Timestamp(rules)) => rules.required(),
            _ => false,
        }
}

fn enumeration(number: i32, kind: &Kind, rules: &EnumRules) -> Option<String> {
    let descriptor = kind.as_enum()?;
    let name = |number: i32| descriptor.get_value(number).map_or(number.to_string(), |value| value.name().to_owned());
    let names = |numbers: &[i32]| numbers.iter().map(|number| name(*number)).collect::<Vec<_>>().join(", ");
    if rules.defined_only() && descriptor.get_value(number).is_none() {
        return Some(format!("{number} is no value of {}", descriptor.full_name()));
    }
    if let Some(wanted) = rules.r#const.filter(|wanted| *wanted != number) {
        return Some(format!("must be {}, is {}", name(wanted), name(number)));
    }
    if !rules.r#in.is_empty() && !rules.r#in.contains(&number) {
        return Some(format!("must be one of {}, is {}", names(&rules.r#in), name(number)));
    }
    rules.not_in.contains(&number).then(|| format!("must not be {}", name(number)))
}
