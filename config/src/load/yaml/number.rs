//! Plain scalars that are not text (YAML 1.2.2 §10.3.2, the core schema).

/// What a plain scalar means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Plain<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// A number that no type can hold.
    Unbounded,
    Text(&'a str),
}

pub(super) fn resolve(text: &str) -> Plain<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Plain::Null,
        "true" | "True" | "TRUE" => Plain::Bool(true),
        "false" | "False" | "FALSE" => Plain::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => Plain::Unbounded,
        _ if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) => number(text),
        _ => Plain::Text(text),
    }
}

fn number(text: &str) -> Plain<'_> {
    let radix = |digits: &str, radix| match u64::from_str_radix(digits, radix) {
        Ok(number) if !digits.starts_with('+') => Plain::Unsigned(number),
        _ => Plain::Text(text),
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return match (text.parse::<u64>(), text.parse::<i64>()) {
            (Ok(number), _) => Plain::Unsigned(number),
            (_, Ok(number)) => Plain::Signed(number),
            _ => Plain::Unbounded,
        };
    }
    // [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?
    let looks_like_float =
        unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
            && unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    match text.parse::<f64>() {
        Ok(number) if looks_like_float && number.is_finite() => Plain::Float(number),
        Ok(_) if looks_like_float => Plain::Unbounded,
        _ => Plain::Text(text),
    }
}
