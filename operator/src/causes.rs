//! An error with everything that led to it, in one line: for the log, where nobody asks further.

use std::error::Error;

/// What it says, and what each cause below it does.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no door opens")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn each_cause_is_said_behind_what_it_led_to() {
        let cause = "x".parse::<u8>().expect_err("no number");
        let expected = format!("no door opens: {cause}");
        assert_eq!(causes(&Outer(cause)), expected);
    }
}
