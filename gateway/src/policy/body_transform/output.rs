//! Writes a program's output as JSON.

use jaq_json::{Num, Val};

use super::TransformFailure;

/// Expects a value whose size and depth have been checked. What JSON cannot say is refused, except for
/// what jq itself settles: NaN becomes null, infinity the largest number.
pub(super) fn to_json(value: &Val) -> Result<Vec<u8>, TransformFailure> {
    let mut out = Vec::with_capacity(256);
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Val, out: &mut Vec<u8>) -> Result<(), TransformFailure> {
    match value {
        Val::Null => out.extend_from_slice(b"null"),
        Val::Bool(true) => out.extend_from_slice(b"true"),
        Val::Bool(false) => out.extend_from_slice(b"false"),
        Val::Num(number) => write_number(number, out),
        Val::TStr(text) => write_text(text, out)?,
        Val::BStr(_) => return Err(TransformFailure::InvalidOutput("it has a byte string")),
        Val::Arr(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Val::Obj(entries) => {
            out.push(b'{');
            for (i, (key, item)) in entries.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                match key {
                    Val::TStr(key) => write_text(key, out)?,
                    _ => return Err(TransformFailure::InvalidOutput("it has an object with a key that is no string")),
                }
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_number(number: &Num, out: &mut Vec<u8>) {
    let text = match number {
        Num::Int(integer) => integer.to_string(),
        Num::BigInt(integer) => integer.to_string(),
        Num::Dec(decimal) => decimal.to_string(),
        Num::Float(float) if float.is_nan() => "null".to_owned(),
        Num::Float(float) => {
            let finite = float.clamp(f64::MIN, f64::MAX);
            // Whole numbers without a decimal point, as long as they are exact.
            if finite.fract() == 0.0 && finite.abs() < 9e15 {
                format!("{finite:.0}")
            } else {
                serde_json::Number::from_f64(finite).map_or_else(|| "null".to_owned(), |number| number.to_string())
            }
        }
    };
    out.extend_from_slice(text.as_bytes());
}

fn write_text(text: &[u8], out: &mut Vec<u8>) -> Result<(), TransformFailure> {
    // A program can cut a string within a character; what is left of that is marked as unreadable.
    serde_json::to_writer(out, &*String::from_utf8_lossy(text))
        .map_err(|_| TransformFailure::InvalidOutput("it has a string that cannot be written"))
}
