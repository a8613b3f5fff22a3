use proptest::collection::vec;
use proptest::prelude::*;

use super::{FieldLine, FieldName, Fields, Malformed, is_value};

fn wire(fields: &Fields) -> String {
    let mut out = Vec::new();
    fields.write_wire(&mut out, |_| true);
    String::from_utf8(out).unwrap()
}

#[test]
fn set_replaces_every_field_of_the_name_and_appends_one() {
    let mut fields = Fields::new();
    for (name, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
        assert!(fields.push(name.as_bytes(), value.as_bytes()));
    }
    assert!(fields.set(b"a", b"4"));
    assert_eq!(wire(&fields), "b: 2\r\na: 4\r\n");
    assert_eq!(fields.get(b"a"), Some(&b"4"[..]));
    assert_eq!(fields.len(), 2);
}

#[test]
fn whole_lines_are_fields_as_any() {
    static CONSTANT: FieldLine = FieldLine::of(b"a: 1\r\n");
    const NAME: FieldName = FieldName::of(b"a: ");
    let mut fields = Fields::new();
    fields.push_line(&CONSTANT);
    fields.push(b"b", b"2");
    fields.push_line(&FieldLine::new(NAME, b"").expect("no value is one"));
    assert_eq!(fields.iter().collect::<Vec<_>>(), [(&b"a"[..], &b"1"[..]), (b"b", b"2"), (b"a", b"")]);
    fields.set_line(&FieldLine::new(NAME, b"3").expect("valid"));
    assert_eq!(wire(&fields), "b: 2\r\na: 3\r\n", "all of the name are replaced");
    assert!(FieldLine::new(NAME, b"x\r\nb: c").is_none(), "that would be two lines");
}

#[test]
fn what_would_be_a_second_line_is_refused() {
    let mut fields = Fields::new();
    for (name, value) in [
        ("a", "x\r\nb: c"),
        ("a", "x\n"),
        ("a", "\0"),
        ("a\r\n", "x"),
        ("", "x"),
        ("A", "x"),
        ("a b", "x"),
        (":path", "/"),
    ] {
        assert!(!fields.push(name.as_bytes(), value.as_bytes()), "{name:?}: {value:?} was added");
        assert!(!fields.set(name.as_bytes(), value.as_bytes()), "{name:?}: {value:?} was set");
    }
    assert!(fields.is_empty());
}

#[test]
fn a_refused_set_keeps_what_was_there() {
    let mut fields = Fields::new();
    fields.push(b"a", b"1");
    assert!(!fields.set(b"a", b"\n"));
    assert_eq!(fields.get(b"a"), Some(&b"1"[..]));
}

#[test]
fn the_wire_form_leaves_out_what_was_removed_or_is_not_kept() {
    let mut fields = Fields::new();
    for name in ["a", "b", "c", "d", "e"] {
        fields.push(name.as_bytes(), b"v");
    }
    assert!(fields.remove(b"b"));
    assert!(!fields.remove(b"b"));
    let mut out = Vec::new();
    fields.write_wire(&mut out, |name| name != b"d");
    assert_eq!(String::from_utf8(out).unwrap(), "a: v\r\nc: v\r\ne: v\r\n");
    assert_eq!(fields.wire_len(), "a: v\r\n".len() * 4);
}

#[test]
fn parsed_names_are_lower_cased() {
    let mut fields = Fields::new();
    fields.push_valid(b"X-Request-ID", b"Abc");
    assert_eq!(fields.get(b"x-request-id"), Some(&b"Abc"[..]));
}

#[test]
fn lines_become_fields() {
    let lines = b"Host: h\r\nX-A:b\r\nc:  d \t\r\nempty:\r\nspace: \r\n\r\n";
    let mut fields = Fields::new();
    assert!(fields.push(b"before", b"x"));
    let mut section = fields.section(lines);
    while let Some(line) = section.next_line().unwrap() {
        if section.name(&line) != b"host" {
            section.keep(&line);
        }
    }
    assert_eq!(wire(&fields), "before: x\r\nx-a: b\r\nc: d\r\nempty: \r\nspace: \r\n");
    assert_eq!(fields.get(b"x-a"), Some(&b"b"[..]));
}

#[test]
fn lines_that_a_neighbour_may_read_differently_are_malformed() {
    for (lines, why) in [
        (&b"a : b\r\n"[..], Malformed::Name),
        (b" a: b\r\n", Malformed::Name),
        (b"\ta: b\r\n", Malformed::Name),
        (b": b\r\n", Malformed::Name),
        (b"a\r\n", Malformed::Name),
        (b"a", Malformed::Name),
        (b"\xc3\xa9: b\r\n", Malformed::Name),
        (b"\0: b\r\n", Malformed::Name),
        (b"\r\n\r\n", Malformed::Name),
        (b"a: b\x01\r\n", Malformed::Value),
        (b"a: b\rc\r\n", Malformed::Value),
        (b"a: b\x7f\r\n", Malformed::Value),
        (b"a: b", Malformed::Value),
        (b"a: b\n", Malformed::BareLf),
        (b"\n", Malformed::BareLf),
    ] {
        let seen = Fields::new().section(lines).next_line().expect_err("a malformed line");
        assert_eq!(seen, why, "{}", lines.escape_ascii());
    }
}

proptest! {
    /// Eight bytes at a time come to the same as one.
    #[test]
    fn a_value_ends_where_its_first_foreign_byte_stands(
        value in vec(prop_oneof![8 => b' '..=b'~', 1 => any::<u8>(), 1 => Just(b'\t')], 0..40),
    ) {
        let lines = [b"a: v", &value[..], b"\r\n"].concat();
        let seen = Fields::new().section(&lines).next_line();
        let valid = is_value(&value);
        prop_assert_eq!(seen.is_ok(), valid, "{}", lines.escape_ascii());
        if let Ok(Some(line)) = seen {
            prop_assert_eq!(lines[line.value].trim_ascii_end(), lines[3..lines.len() - 2].trim_ascii_end());
        }
    }
}
