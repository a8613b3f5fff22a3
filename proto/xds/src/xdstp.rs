//! Names of the form `xdstp://AUTHORITY/TYPE/ID?PARAMETERS` (xDS TP1): the collections that they are in.

use culvert_api::xdstp::SCHEME;
pub use culvert_api::xdstp::canonical;

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

#[cfg(test)]
mod tests {
    use super::*;

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
