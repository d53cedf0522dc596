//! Object size and store limits to part ranges.

use crate::{
    error::{Error, ErrorKind, Op, Result},
    sink::MultipartLimits,
};
use std::ops::Range;

const MIB: u64 = 1 << 20;

/// Equal parts but for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartPlan {
    /// Bytes of the object, at least 1.
    pub size: u64,
    /// Bytes of every part but the last, at least 1.
    pub part_size: u64,
}

impl PartPlan {
    /// Our own layout: parts of `preferred` bytes, larger when the store's limits ask for it.
    ///
    /// `Unrepresentable` when the object does not fit into the store's parts.
    pub fn own(size: u64, preferred: u64, limits: &MultipartLimits) -> Result<Self> {
        let least = size.div_ceil(u64::from(limits.max_parts.max(1)));
        let least = if least > MIB { least.next_multiple_of(MIB) } else { least };
        let part_size = preferred.clamp(limits.min_part.min(limits.max_part), limits.max_part).max(least).max(1);
        if part_size > limits.max_part {
            return Err(Error::new(ErrorKind::Unrepresentable, Op::Plan, format!("object of {size} bytes"))
                .with_source(format!("the destination takes at most {} parts of {} bytes", limits.max_parts, limits.max_part)));
        }
        Ok(Self { size: size.max(1), part_size })
    }

    /// The layout of a source whose first part has `first` bytes, of `count` in all; `None` when equal parts cannot have
    /// given that, or the destination cannot take it.
    pub fn like_source(size: u64, first: u64, count: u32, limits: &MultipartLimits) -> Option<Self> {
        let plan = Self { size, part_size: first };
        let fits = first > 0
            && first <= limits.max_part
            && (count == 1 || first >= limits.min_part)
            && count <= limits.max_parts
            && size.div_ceil(first) == u64::from(count);
        fits.then_some(plan)
    }

    /// Number of parts.
    pub fn count(&self) -> u32 {
        self.size.div_ceil(self.part_size) as u32
    }

    /// The bytes of part `number`, from 1.
    pub fn range(&self, number: u32) -> Range<u64> {
        let start = u64::from(number - 1) * self.part_size;
        start..(start + self.part_size).min(self.size)
    }

    /// All parts with their ranges.
    pub fn parts(self) -> impl Iterator<Item = (u32, Range<u64>)> {
        (1..=self.count()).map(move |n| (n, self.range(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S3: MultipartLimits =
        MultipartLimits { min_part: 5 * MIB, max_part: 5 << 30, max_parts: 10_000, list_parts: true, list_uploads: true };

    proptest! {
        /// T19: from one byte to the 50 TB of Amazon S3, the parts cover the object exactly, within the store's limits.
        #[test]
        fn own_layout_covers_exactly(size in prop_oneof![1..64 * MIB, 1..(50u64 << 40)], preferred in 1..(1u64 << 31)) {
            match PartPlan::own(size, preferred, &S3) {
                Ok(plan) => {
                    prop_assert!(plan.count() <= S3.max_parts);
                    prop_assert!(plan.part_size >= S3.min_part && plan.part_size <= S3.max_part);
                    prop_assert_eq!(plan.range(1).start, 0);
                    prop_assert_eq!(plan.range(plan.count()).end, size);
                    prop_assert!(!plan.range(plan.count()).is_empty());
                }
                Err(_) => prop_assert!(size > S3.max_part * u64::from(S3.max_parts)),
            }
        }

        #[test]
        fn ranges_are_contiguous(size in 1..100_000u64, part_size in 1..5_000u64) {
            let mut at = 0;
            for (_, range) in (PartPlan { size, part_size }).parts() {
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > at);
                at = range.end;
            }
            prop_assert_eq!(at, size);
        }
    }

    #[test]
    fn a_source_layout_is_taken_only_when_it_explains_the_object() {
        let like = |size, first, count| PartPlan::like_source(size, first, count, &S3).map(|p| p.part_size);
        assert_eq!(like(13 * MIB, 5 * MIB, 3), Some(5 * MIB));
        assert_eq!(like(13 * MIB, 5 * MIB, 4), None);
        assert_eq!(like(3, 3, 1), Some(3));
        assert_eq!(like(3, 1, 3), None, "parts below the destination's minimum");
        assert_eq!(like(0, 0, 1), None);
    }
}
