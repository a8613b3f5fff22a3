use super::Fields;

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
