//! Which nodes a status request asks for (`envoy.type.matcher.v3.NodeMatcher`).

use culvert_api::envoy::r#type::matcher::v3::double_matcher::MatchPattern as DoublePattern;
use culvert_api::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use culvert_api::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use culvert_api::envoy::r#type::matcher::v3::struct_matcher::path_segment::Segment;
use culvert_api::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
use culvert_api::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher, StructMatcher, ValueMatcher};
use culvert_xds::NodeIdentity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use regex::Regex;
use tonic::Status;

/// The node's id, and all of the fields of its metadata.
pub(super) struct Matcher {
    id: Option<Text>,
    metadata: Vec<Field>,
}

/// A field of metadata, by its path.
struct Field {
    path: Vec<String>,
    value: Pattern,
}

/// What a value must be.
enum Pattern {
    Null,
    Number(f64),
    /// From the first, to below the second.
    Range(f64, f64),
    Text(Text),
    Bool(bool),
    /// There is one that is neither a struct nor a list; `false` matches nothing, as in Envoy.
    Present(bool),
    /// A list of which one is so.
    OneOf(Box<Self>),
    Any(Vec<Self>),
}

enum Text {
    Exact(String, Case),
    Prefix(String, Case),
    Suffix(String, Case),
    Contains(String, Case),
    Regex(Regex),
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Kept,
    Ignored,
}

impl Matcher {
    pub(super) fn new(matcher: &NodeMatcher) -> Result<Self, Status> {
        Ok(Self {
            id: matcher.node_id.as_ref().map(|id| Text::new(id, "node_id")).transpose()?,
            metadata: matcher.node_metadatas.iter().map(Field::new).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn matches(&self, node: &NodeIdentity) -> bool {
        let id = self.id.as_ref().is_none_or(|id| id.matches(&node.id));
        id && self.metadata.iter().all(|field| field.matches(node.metadata.as_ref()))
    }
}

impl Field {
    fn new(matcher: &StructMatcher) -> Result<Self, Status> {
        let key = |segment: &Option<Segment>| segment.as_ref().map(|Segment::Key(key)| key.clone());
        let path: Option<Vec<String>> = matcher.path.iter().map(|segment| key(&segment.segment)).collect();
        let path = path.filter(|path| !path.is_empty()).ok_or_else(|| wrong("path", "is missing, or has no key"))?;
        let value = matcher.value.as_ref().ok_or_else(|| wrong("value", "is missing"))?;
        Ok(Self { path, value: Pattern::new(value)? })
    }

    fn matches(&self, metadata: Option<&Struct>) -> bool {
        let Some(mut fields) = metadata else { return false };
        let Some((last, parents)) = self.path.split_last() else { return false };
        for key in parents {
            match fields.fields.get(key).and_then(|value| value.kind.as_ref()) {
                Some(Kind::StructValue(inner)) => fields = inner,
                _ => return false,
            }
        }
        fields.fields.get(last).is_some_and(|value| self.value.matches(value))
    }
}

impl Pattern {
    fn new(matcher: &ValueMatcher) -> Result<Self, Status> {
        match &matcher.match_pattern {
            Some(ValuePattern::NullMatch(_)) => Ok(Self::Null),
            Some(ValuePattern::DoubleMatch(number)) => match &number.match_pattern {
                Some(DoublePattern::Exact(number)) => Ok(Self::Number(*number)),
                Some(DoublePattern::Range(range)) => Ok(Self::Range(range.start, range.end)),
                None => Err(wrong("value.double_match", "is empty; use range or exact")),
            },
            Some(ValuePattern::StringMatch(text)) => {
                Ok(Self::Text(Text::new(text, "node_metadatas.value.string_match")?))
            }
            Some(ValuePattern::BoolMatch(wanted)) => Ok(Self::Bool(*wanted)),
            Some(ValuePattern::PresentMatch(wanted)) => Ok(Self::Present(*wanted)),
            Some(ValuePattern::ListMatch(list)) => match &list.match_pattern {
                Some(ListPattern::OneOf(one)) => Ok(Self::OneOf(Box::new(Self::new(one)?))),
                None => Err(wrong("value.list_match", "is empty; use one_of")),
            },
            Some(ValuePattern::OrMatch(any)) => {
                Ok(Self::Any(any.value_matchers.iter().map(Self::new).collect::<Result<_, _>>()?))
            }
            None => Err(wrong("value", "is empty; say what to match")),
        }
    }

    fn matches(&self, value: &Value) -> bool {
        match (self, &value.kind) {
            (Self::Null, Some(Kind::NullValue(_))) => true,
            #[expect(clippy::float_cmp, reason = "DoubleMatcher.exact: must be equal")]
            (Self::Number(wanted), Some(Kind::NumberValue(number))) => number == wanted,
            (Self::Range(start, end), Some(Kind::NumberValue(number))) => start <= number && number < end,
            (Self::Text(wanted), Some(Kind::StringValue(text))) => wanted.matches(text),
            (Self::Bool(wanted), Some(Kind::BoolValue(value))) => value == wanted,
            (Self::Present(wanted), Some(kind)) => {
                *wanted && !matches!(kind, Kind::StructValue(_) | Kind::ListValue(_))
            }
            (Self::OneOf(wanted), Some(Kind::ListValue(list))) => list.values.iter().any(|one| wanted.matches(one)),
            (Self::Any(wanted), _) => wanted.iter().any(|one| one.matches(value)),
            _ => false,
        }
    }
}

impl Text {
    /// `of`: the field, for messages.
    fn new(matcher: &StringMatcher, of: &str) -> Result<Self, Status> {
        let case = if matcher.ignore_case { Case::Ignored } else { Case::Kept };
        let folded = |text: &String| fold(text, case);
        match &matcher.match_pattern {
            Some(MatchPattern::Exact(text)) => Ok(Self::Exact(folded(text), case)),
            Some(MatchPattern::Prefix(text)) => Ok(Self::Prefix(folded(text), case)),
            Some(MatchPattern::Suffix(text)) => Ok(Self::Suffix(folded(text), case)),
            Some(MatchPattern::Contains(text)) => Ok(Self::Contains(folded(text), case)),
            Some(MatchPattern::SafeRegex(regex)) => match Regex::new(&format!("^(?:{})$", regex.regex)) {
                Ok(regex) => Ok(Self::Regex(regex)),
                Err(error) => Err(Status::invalid_argument(format!("node_matchers.{of}.safe_regex: {error}"))),
            },
            Some(MatchPattern::Custom(_)) | None => Err(Status::invalid_argument(format!(
                "node_matchers.{of}: use exact, prefix, suffix, contains or safe_regex"
            ))),
        }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted, case) => fold(text, *case) == *wanted,
            Self::Prefix(wanted, case) => fold(text, *case).starts_with(wanted),
            Self::Suffix(wanted, case) => fold(text, *case).ends_with(wanted),
            Self::Contains(wanted, case) => fold(text, *case).contains(wanted),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

fn fold(text: &str, case: Case) -> String {
    if case == Case::Ignored { text.to_lowercase() } else { text.to_owned() }
}

fn wrong(field: &str, what: &str) -> Status {
    Status::invalid_argument(format!("node_matchers.node_metadatas.{field} {what}"))
}

#[cfg(test)]
mod tests {
    use culvert_api::culvert::control::v1::NodeSelector;
    use culvert_api::document::{self, Syntax};
    use culvert_api::envoy::r#type::matcher::v3::struct_matcher::PathSegment;
    use culvert_api::envoy::r#type::matcher::v3::{DoubleMatcher, RegexMatcher};

    use super::*;

    fn parse(text: &str) -> NodeMatcher {
        document::load::<NodeMatcher>(text.as_bytes(), Syntax::Yaml).expect(text).message
    }

    #[test]
    fn nodes_are_matched_by_id_and_by_every_kind_of_metadata() {
        let metadata = "{zone: east-1, weight: 2.5, edge: true, none: null, tags: [a, b], deep: {er: {est: x}}}";
        let selector = format!("{{metadata: {metadata}}}");
        let metadata = document::load::<NodeSelector>(selector.as_bytes(), Syntax::Yaml).unwrap().message.metadata;
        let node = NodeIdentity { id: "n1".into(), metadata, ..NodeIdentity::default() };
        let at = |path: &[&str], value: &str| {
            let path: Vec<String> = path.iter().map(|key| format!("{{key: {key}}}")).collect();
            format!("{{node_metadatas: [{{path: [{}], value: {value}}}]}}", path.join(", "))
        };
        for (matcher, expected) in [
            ("{}".to_owned(), true),
            ("{node_id: {exact: n1}}".to_owned(), true),
            ("{node_id: {prefix: N, ignore_case: true}}".to_owned(), true),
            ("{node_id: {safe_regex: {regex: \"n[2-9]\"}}}".to_owned(), false),
            (at(&["zone"], "{string_match: {prefix: east}}"), true),
            (at(&["zone"], "{string_match: {exact: west-1}}"), false),
            (at(&["zone"], "{double_match: {exact: 1}}"), false),
            (at(&["weight"], "{double_match: {exact: 2.5}}"), true),
            (at(&["weight"], "{double_match: {range: {start: 2.5, end: 3}}}"), true),
            (at(&["weight"], "{double_match: {range: {start: 2, end: 2.5}}}"), false),
            (at(&["edge"], "{bool_match: true}"), true),
            (at(&["edge"], "{bool_match: false}"), false),
            (at(&["none"], "{null_match: {}}"), true),
            (at(&["zone"], "{null_match: {}}"), false),
            (at(&["tags"], "{list_match: {one_of: {string_match: {exact: b}}}}"), true),
            (at(&["tags"], "{list_match: {one_of: {string_match: {exact: c}}}}"), false),
            (at(&["zone"], "{present_match: true}"), true),
            (at(&["zone"], "{present_match: false}"), false),
            (at(&["deep"], "{present_match: true}"), false),
            (at(&["nothing"], "{present_match: true}"), false),
            (at(&["deep", "er", "est"], "{string_match: {exact: x}}"), true),
            (at(&["deep", "est"], "{string_match: {exact: x}}"), false),
            (at(&["zone", "est"], "{string_match: {exact: x}}"), false),
            (
                at(&["zone"], "{or_match: {value_matchers: [{bool_match: true}, {string_match: {suffix: \"-1\"}}]}}"),
                true,
            ),
            (
                "{node_id: {exact: n1}, node_metadatas: [{path: [{key: edge}], value: {bool_match: true}}, \
                  {path: [{key: zone}], value: {bool_match: true}}]}"
                    .to_owned(),
                false,
            ),
        ] {
            assert_eq!(Matcher::new(&parse(&matcher)).unwrap().matches(&node), expected, "{matcher}");
        }
        let bare = NodeIdentity::default();
        assert!(!Matcher::new(&parse(&at(&["zone"], "{present_match: true}"))).unwrap().matches(&bare));
    }

    /// Messages that no document could hold, but a request can.
    #[test]
    fn a_matcher_that_says_nothing_is_refused_with_its_field() {
        let at = |key: Option<&str>, value: Option<ValuePattern>| {
            let segment = PathSegment { segment: key.map(|key| Segment::Key(key.to_owned())) };
            let value = Some(ValueMatcher { match_pattern: value });
            NodeMatcher { node_metadatas: vec![StructMatcher { path: vec![segment], value }], node_id: None }
        };
        let mut valueless = at(Some("a"), None);
        valueless.node_metadatas[0].value = None;
        let broken = RegexMatcher { regex: "(".to_owned(), ..RegexMatcher::default() };
        let broken = StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(broken)), ..StringMatcher::default() };
        for (matcher, expected) in [
            (NodeMatcher { node_id: Some(StringMatcher::default()), ..NodeMatcher::default() }, "node_id: use exact"),
            (NodeMatcher { node_metadatas: vec![StructMatcher::default()], node_id: None }, "path is missing"),
            (at(None, Some(ValuePattern::BoolMatch(true))), "path is missing"),
            (valueless, "value is missing"),
            (at(Some("a"), None), "value is empty"),
            (at(Some("a"), Some(ValuePattern::DoubleMatch(DoubleMatcher::default()))), "double_match is empty"),
            (at(Some("a"), Some(ValuePattern::ListMatch(Box::default()))), "list_match is empty"),
            (at(Some("a"), Some(ValuePattern::StringMatch(broken))), "string_match.safe_regex"),
        ] {
            let refused = Matcher::new(&matcher).err().unwrap_or_else(|| panic!("{matcher:?} is taken"));
            assert!(refused.message().contains(expected), "{matcher:?}: {refused:?}");
        }
    }
}
