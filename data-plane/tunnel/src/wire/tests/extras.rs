//! What our two ends say beside MOSN's keys.

use std::time::Duration;

use super::*;

#[test]
fn what_a_refusal_says_of_coming_back() {
    let response = |text: &str| match decode(&frame(1, 2, [2, 0], text)) {
        Ok(Some(Frame::Response(response))) => response.retry_after,
        other => panic!("{text}: {other:?}"),
    };
    for (text, expected) in [
        (r#"{"status":0}"#, None),
        (r#"{"status":0,"retry_after_ms":500}"#, Some(500)),
        (r#"{"status":0,"Retry_After_Ms":0}"#, Some(0)),
        (r#"{"status":0,"retry_after_ms":-1}"#, None),
        (r#"{"status":0,"retry_after_ms":"500"}"#, None),
        (r#"{"status":0,"retry_after_ms":1.5}"#, None),
        (r#"{"status":0,"retry_after_ms":null}"#, None),
    ] {
        assert_eq!(response(text), expected.map(Duration::from_millis), "{text}");
    }
    let refusal = Response { retry_after: Some(Duration::from_millis(500)), ..Response::default() };
    let bytes = Frame::Response(refusal).encode().unwrap();
    assert_eq!(&bytes[8..], br#"{"status":0,"retry_after_ms":500}"#, "as it is written");
}

#[test]
fn a_proof_goes_in_the_place_of_the_credential() {
    let proof = Proof::parse(&"0f".repeat(32)).unwrap();
    let init = Init { caps: vec![CAPABILITY.into()], proof: Some(proof), ..init_edge() };
    let bytes = Frame::Init(init.clone()).encode().unwrap();
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let expected = format!(r#""credential":"","extra":{{"caps":["culvert/1"],"proof":"{}"}}"#, "0f".repeat(32));
    assert!(text.contains(&expected), "{text}");
    assert_eq!(decode(&bytes), Ok(Some(Frame::Init(init))), "as it was sent");
}
