//! Benchmarks: raw TCP, bare quinn, the engine and whole agents, side by side; and agents beside what others make.

pub mod agents;
pub mod alone;
pub mod bulk;
pub mod command;
pub mod figures;
pub mod machine;
pub mod network;
pub mod people;
pub mod process;
pub mod wait;

/// What functions here fail with: a benchmark that breaks is read by a person.
pub type Result<T> = std::result::Result<T, Error>;
/// See [`Result`].
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The middle of `values`, or the mean of the two in the middle; NaN when there are none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_does_not_move_the_median() {
        assert_eq!(median(&[3.0, 1.0, 900.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 900.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}
