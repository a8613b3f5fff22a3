//! Names of the form `xdstp://AUTHORITY/TYPE/ID?PARAMETERS` (xDS TP1): one spelling for each, and the collections that they are in.

use std::borrow::Cow;

const SCHEME: &str = "xdstp:";

/// The name with its context parameters in order: equal names are equal as text (TP1, "the context parameters ... ordered by
/// key"). What is no such name is as it is.
#[must_use]
pub fn canonical(name: &str) -> Cow<'_, str> {
    let Some((resource, parameters)) = parameters(name) else { return Cow::Borrowed(name) };
    let (parameters, directive) = match parameters.split_once('#') {
        Some((parameters, directive)) => (parameters, Some(directive)),
        None => (parameters, None),
    };
    let mut pairs: Vec<&str> = parameters.split('&').collect();
    if pairs.is_sorted() {
        return Cow::Borrowed(name);
    }
    pairs.sort_unstable();
    let directive = directive.map(|directive| format!("#{directive}")).unwrap_or_default();
    Cow::Owned(format!("{resource}?{}{directive}", pairs.join("&")))
}

/// Whether a name stands for all resources of a collection: its last segment is `*`.
#[must_use]
pub fn is_glob(name: &str) -> bool {
    name.starts_with(SCHEME) && path(name).ends_with("/*")
}

/// The glob that a resource of this name falls under: of its own level, with the same parameters.
pub(crate) fn collection_of(name: &str) -> Option<String> {
    let path = path(name.strip_prefix(SCHEME)?);
    let rest = name.get(SCHEME.len() + path.len()..)?;
    let (parents, last) = path.rsplit_once('/')?;
    // An authority, maybe an empty one, a type, and what is named.
    let is_named = parents.strip_prefix("//").is_some_and(|parents| parents.contains('/'));
    (is_named && !last.is_empty() && last != "*").then(|| format!("{SCHEME}{parents}/*{rest}"))
}

/// What all members of a collection begin with.
pub(crate) fn prefix_of_members(glob: &str) -> &str {
    path(glob).strip_suffix('*').unwrap_or(glob)
}

/// What comes before the parameters and the directive.
fn path(name: &str) -> &str {
    name.split(['?', '#']).next().unwrap_or(name)
}

fn parameters(name: &str) -> Option<(&str, &str)> {
    if name.starts_with(SCHEME) { name.split_once('?') } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_one_order() {
        for (name, expected) in [
            ("plain?b=1&a=2", "plain?b=1&a=2"),
            ("xdstp://a/t/x", "xdstp://a/t/x"),
            ("xdstp://a/t/x?a=1&b=2", "xdstp://a/t/x?a=1&b=2"),
            ("xdstp://a/t/x?b=2&a=1", "xdstp://a/t/x?a=1&b=2"),
            ("xdstp:///t/x/*?z=&b=2&a=1#e", "xdstp:///t/x/*?a=1&b=2&z=#e"),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
        }
    }

    #[test]
    fn a_collection_is_one_level_of_names_with_the_same_parameters() {
        for (name, expected) in [
            ("plain", None),
            ("a/b/c", None),
            ("xdstp:", None),
            ("xdstp://a", None),
            ("xdstp://a/type", None),
            ("xdstp://a/type/", None),
            ("xdstp://a/type/x", Some("xdstp://a/type/*")),
            ("xdstp:///type/x", Some("xdstp:///type/*")),
            ("xdstp://a/type/x/y", Some("xdstp://a/type/x/*")),
            ("xdstp://a/type/x?e=1", Some("xdstp://a/type/*?e=1")),
            ("xdstp://a/type/*", None),
            ("xdstp://a/type/x?slash=/", Some("xdstp://a/type/*?slash=/")),
        ] {
            assert_eq!(collection_of(name).as_deref(), expected, "{name}");
        }
        assert!(is_glob("xdstp://a/type/*?e=1") && !is_glob("xdstp://a/type/x?e=/*") && !is_glob("a/*"));
    }
}
