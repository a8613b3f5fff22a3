use super::*;

type Field = (Vec<u8>, Vec<u8>);

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, HpackError> {
    let mut fields = Vec::new();
    decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec())))?;
    Ok(fields)
}

fn encode(encoder: &mut Encoder, fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.begin(&mut block);
    for (name, value) in fields {
        encoder.field(name, value, &mut block);
    }
    block
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| u8::try_from((byte as char).to_digit(16).unwrap()).unwrap();
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn fields(text: &str) -> Vec<Field> {
    text.lines()
        .map(|line| {
            let line = line.trim();
            // A pseudo-header field begins with a colon.
            let (name, value) = line.split_at(line[1..].find(": ").unwrap() + 1);
            (name.as_bytes().to_vec(), value.as_bytes()[2..].to_vec())
        })
        .collect()
}

mod malformed;
mod policy;
mod properties;
mod vectors;
