//! What a plan will cost: requests by kind, times a price table that is data.

use crate::state::FinderTotals;
use serde::{Deserialize, Serialize};

/// Prices in US dollars. The defaults are the list prices of Amazon S3 Standard in us-east-1; set your own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prices {
    /// Per 1,000 LIST, PUT, POST and COPY requests.
    pub write_per_thousand: f64,
    /// Per 1,000 GET and HEAD requests.
    pub read_per_thousand: f64,
    /// Per GB (10^9 bytes) leaving the source.
    pub egress_per_gb: f64,
    /// Per million requests to the queue; SQS counts every 64 KiB of a request as one.
    pub queue_per_million: f64,
    /// Per million write units of the state: DynamoDB counts every KiB of an item as one, and twice within a transaction.
    pub state_write_per_million: f64,
    /// Per million read units of the state: every 4 KiB of an item that is read consistently.
    pub state_read_per_million: f64,
}

impl Default for Prices {
    fn default() -> Self {
        Self {
            write_per_thousand: 0.005,
            read_per_thousand: 0.0004,
            egress_per_gb: 0.09,
            queue_per_million: 0.4,
            state_write_per_million: 1.25,
            state_read_per_million: 0.25,
        }
    }
}

/// Requests that a transfer needs, without faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// LIST at the source.
    pub source_list: u64,
    /// LIST at the destination.
    pub destination_list: u64,
    /// GET.
    pub get: u64,
    /// PUT, create, part, complete.
    pub put: u64,
    /// Billed requests to the queue. Not part of a plan: it depends on how many workers share the work.
    #[serde(default)]
    pub queue: u64,
    /// Write units of the state. Not part of a plan.
    #[serde(default)]
    pub state_write: u64,
    /// Read units of the state. Not part of a plan.
    #[serde(default)]
    pub state_read: u64,
}

impl Requests {
    /// Adds the requests of one object.
    pub fn add_object(&mut self, size: u64, single_max: u64, part_size: u64) {
        if size <= single_max {
            self.get += 1;
            self.put += 1;
        } else {
            let parts = size.div_ceil(part_size.max(1));
            self.get += parts;
            self.put += parts + 2;
        }
    }

    /// What they cost, with the bytes that leave the source.
    pub fn cost(&self, bytes: u64, prices: &Prices) -> f64 {
        let writes = (self.source_list + self.destination_list + self.put) as f64;
        writes / 1e3 * prices.write_per_thousand
            + self.get as f64 / 1e3 * prices.read_per_thousand
            + bytes as f64 / 1e9 * prices.egress_per_gb
            + self.queue as f64 / 1e6 * prices.queue_per_million
            + self.state_write as f64 / 1e6 * prices.state_write_per_million
            + self.state_read as f64 / 1e6 * prices.state_read_per_million
    }
}

/// What would be done, before it is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The ledger as the finder sees it.
    pub totals: FinderTotals,
    /// The requests.
    pub requests: Requests,
    /// US dollars by the price table.
    pub cost: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_objects_need_two_requests() {
        let mut requests = Requests::default();
        requests.add_object(10 << 10, 64 << 20, 16 << 20);
        assert_eq!((requests.get, requests.put), (1, 1));
        requests.add_object(100 << 20, 64 << 20, 16 << 20);
        assert_eq!((requests.get, requests.put), (8, 10));
    }
}
