//! Did you mean: remedies for names that are not known.

use prost_reflect::{EnumDescriptor, MessageDescriptor};

use crate::document::node::quote;
use crate::pool;

pub(super) fn unknown_field(message: &MessageDescriptor, key: &str) -> String {
    let names: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
    let remedy = match nearest(key, names.iter().map(String::as_str)) {
        Some(name) => format!("did you mean {name:?}?"),
        None if names.is_empty() => "it has no fields; remove it".to_owned(),
        None if names.len() <= 6 => format!("it has {}", names.join(", ")),
        None => "remove it, or see where it belongs".to_owned(),
    };
    format!("unknown field {} in {}; {remedy}", quote(key), message.full_name())
}

pub(super) fn unknown_enum_value(descriptor: &EnumDescriptor, key: &str) -> String {
    let names: Vec<String> = descriptor.values().map(|value| value.name().to_owned()).collect();
    let remedy = match nearest(key, names.iter().map(String::as_str)) {
        Some(name) => format!("did you mean {name:?}?"),
        None => format!("it has {}", names.join(", ")),
    };
    format!("{} is no value of {}; {remedy}", quote(key), descriptor.full_name())
}

/// The message type whose name is nearest.
pub(super) fn message(full_name: &str) -> Option<String> {
    let names: Vec<String> = pool::pool().all_messages().map(|message| message.full_name().to_owned()).collect();
    nearest(full_name, names.iter().map(String::as_str)).map(str::to_owned).or_else(|| {
        // Often only the package is wrong: an older version, or a folder guessed.
        let short = full_name.rsplit('.').next()?;
        let same = |name: &&String| name.rsplit('.').next() == Some(short);
        let mut candidates: Vec<&String> = names.iter().filter(same).collect();
        candidates.sort_by_key(|name| (!name.starts_with("envoy.config."), !name.contains(".v3."), name.len()));
        candidates.first().map(|name| (*name).clone())
    })
}

/// The candidate with the fewest edits, if they are few for its length.
fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = plain(wanted);
    if wanted.len() > 200 {
        return None;
    }
    let limit = wanted.chars().count().div_ceil(3).min(3);
    candidates
        .map(|candidate| (distance(&wanted, &plain(candidate), limit), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// Levenshtein's distance; anything above `limit` is as good as `limit + 1`.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for (to, pair) in b.iter().zip(row.windows(2)) {
            let [diagonal, above] = pair else { continue };
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(from != *to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
