//! The calls that one page, one batch or one try do not finish.

use super::DynamoStore;
use crate::aws::{
    error::{classify, service},
    item::{Expression, Item, text},
};
use aws_sdk_dynamodb::{
    operation::transact_write_items::TransactWriteItemsError,
    types::{ConditionCheck, Delete, KeysAndAttributes, Put, PutRequest, TransactWriteItem, Update, WriteRequest},
};
use dth_core::{
    env::random_below,
    error::{Error, ErrorKind, Op, Result},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{collections::HashMap, time::Duration};

/// Keys of one BatchGetItem.
const GETS: usize = 100;
/// Items of one BatchWriteItem.
const WRITES: usize = 25;
/// Batches under way at once.
const BATCHES: usize = 4;
/// Rounds for what a batch leaves unprocessed, before the engine is told to slow down.
const ROUNDS: u32 = 12;

/// What became of a transaction.
pub(super) enum Transacted {
    Done,
    /// Nothing was done, because the conditions of these items did not hold.
    Refused(Vec<usize>),
}

impl DynamoStore {
    pub(super) async fn get(&self, op: Op, key: Item) -> Result<Option<Item>> {
        let call = self.client.get_item().table_name(&*self.table).set_key(Some(key)).consistent_read(true);
        Ok(call.send().await.map_err(|e| classify(op, &*self.table, e))?.item)
    }

    /// Items by their keys, in any order; those that do not exist are left out. No key twice.
    pub(super) async fn get_all(&self, keys: Vec<Item>) -> Result<Vec<Item>> {
        let chunks: Vec<Vec<Item>> = keys.chunks(GETS).map(<[Item]>::to_vec).collect();
        let pages = stream::iter(chunks).map(|chunk| self.get_chunk(chunk)).buffer_unordered(BATCHES);
        Ok(pages.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }

    async fn get_chunk(&self, keys: Vec<Item>) -> Result<Vec<Item>> {
        let mut left = keys;
        let mut found = Vec::new();
        for round in 0..ROUNDS {
            self.pause(round).await;
            let asked = KeysAndAttributes::builder().set_keys(Some(left)).consistent_read(true).build();
            let asked = asked.map_err(|e| Error::new(ErrorKind::Invalid, Op::LoadState, &*self.table).with_source(e))?;
            let call = self.client.batch_get_item().request_items(&*self.table, asked);
            let call = || async { call.clone().send().await.map_err(|e| classify(Op::LoadState, &*self.table, e)) };
            let answer = self.one_of_many(call).await?;
            found.extend(answer.responses.and_then(|mut r| r.remove(&*self.table)).unwrap_or_default());
            left = answer.unprocessed_keys.and_then(|mut u| u.remove(&*self.table)).map(|u| u.keys).unwrap_or_default();
            if left.is_empty() {
                return Ok(found);
            }
        }
        Err(Error::new(ErrorKind::Throttled, Op::LoadState, &*self.table).with_source(format!("{} keys were left unread", left.len())))
    }

    /// Puts and deletes without conditions, each of its own.
    pub(super) async fn write_all(&self, requests: Vec<WriteRequest>) -> Result<()> {
        let chunks: Vec<Vec<WriteRequest>> = requests.chunks(WRITES).map(<[WriteRequest]>::to_vec).collect();
        stream::iter(chunks).map(|chunk| self.write_chunk(chunk)).buffer_unordered(BATCHES).try_collect().await
    }

    async fn write_chunk(&self, requests: Vec<WriteRequest>) -> Result<()> {
        let mut left = requests;
        for round in 0..ROUNDS {
            self.pause(round).await;
            let call = self.client.batch_write_item().request_items(&*self.table, left);
            let call = || async { call.clone().send().await.map_err(|e| classify(Op::SaveState, &*self.table, e)) };
            let answer = self.one_of_many(call).await?;
            left = answer.unprocessed_items.and_then(|mut u| u.remove(&*self.table)).unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
        }
        let text = format!("{} items were left unwritten", left.len());
        Err(Error::new(ErrorKind::Throttled, Op::SaveState, &*self.table).with_maybe_applied(true).with_source(text))
    }

    /// One of the many calls that an operation takes: what the others have found is not thrown away because this one is
    /// throttled. Operations of one call leave that to the engine.
    pub(super) async fn one_of_many<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        let mut round = 0;
        loop {
            self.pause(round).await;
            match call().await {
                Err(error) if error.kind() == ErrorKind::Throttled && round < ROUNDS => round += 1,
                answer => return answer,
            }
        }
    }

    pub(super) async fn pause(&self, round: u32) {
        if round > 0 {
            let most = (25 << round.min(6)) + 1;
            tokio::time::sleep(Duration::from_millis(random_below(&*self.env, most))).await;
        }
    }

    /// All or nothing. A transaction that meets another one on an item, or that is throttled, is tried again: `items` makes it anew.
    /// What is to be written is the result of work that would be done again.
    pub(super) async fn transact(&self, items: impl Fn() -> Result<Vec<TransactWriteItem>>) -> Result<Transacted> {
        for round in 0.. {
            self.pause(round).await;
            let call = self.client.transact_write_items().set_transact_items(Some(items()?));
            let Err(error) = call.send().await else { return Ok(Transacted::Done) };
            let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) = error.as_service_error() else {
                match classify(Op::SaveState, &*self.table, error) {
                    throttled if throttled.kind() == ErrorKind::Throttled && round < ROUNDS => continue,
                    failed => return Err(failed),
                }
            };
            let reasons = cancelled.cancellation_reasons();
            let why = |code: &'static str| reasons.iter().enumerate().filter(move |(_, r)| r.code() == Some(code)).map(|(i, _)| i);
            let refused: Vec<usize> = why("ConditionalCheckFailed").collect();
            if !refused.is_empty() {
                return Ok(Transacted::Refused(refused));
            }
            let reason = reasons.iter().find(|r| r.code().is_some_and(|code| code != "None"));
            let code = reason.and_then(|r| r.code()).unwrap_or_default().to_owned();
            let kind = service(&code, 400);
            if kind == ErrorKind::Throttled && round < ROUNDS {
                continue;
            }
            let text = reason.and_then(|r| r.message()).unwrap_or("the transaction was cancelled").to_owned();
            return Err(Error::new(kind, Op::SaveState, &*self.table).with_code(code).with_source(text));
        }
        unreachable!("the rounds end by themselves")
    }

    pub(super) fn put(&self, item: Item, expression: &Expression) -> Result<TransactWriteItem> {
        let put = Put::builder()
            .table_name(&*self.table)
            .set_item(Some(item))
            .set_condition_expression(expression.condition())
            .set_expression_attribute_names(expression.names())
            .set_expression_attribute_values(expression.values());
        Ok(TransactWriteItem::builder().put(put.build().map_err(|e| self.unbuilt(e))?).build())
    }

    pub(super) fn update(&self, key: Item, expression: &Expression) -> Result<TransactWriteItem> {
        let update = Update::builder()
            .table_name(&*self.table)
            .set_key(Some(key))
            .update_expression(expression.update())
            .set_condition_expression(expression.condition())
            .set_expression_attribute_names(expression.names())
            .set_expression_attribute_values(expression.values());
        Ok(TransactWriteItem::builder().update(update.build().map_err(|e| self.unbuilt(e))?).build())
    }

    pub(super) fn delete(&self, key: Item) -> Result<TransactWriteItem> {
        let delete = Delete::builder().table_name(&*self.table).set_key(Some(key)).build().map_err(|e| self.unbuilt(e))?;
        Ok(TransactWriteItem::builder().delete(delete).build())
    }

    pub(super) fn check(&self, key: Item, expression: &Expression) -> Result<TransactWriteItem> {
        let check = ConditionCheck::builder()
            .table_name(&*self.table)
            .set_key(Some(key))
            .set_condition_expression(expression.condition())
            .set_expression_attribute_names(expression.names())
            .set_expression_attribute_values(expression.values());
        Ok(TransactWriteItem::builder().condition_check(check.build().map_err(|e| self.unbuilt(e))?).build())
    }

    pub(super) fn put_request(&self, item: Item) -> Result<WriteRequest> {
        let put = PutRequest::builder().set_item(Some(item)).build().map_err(|e| self.unbuilt(e))?;
        Ok(WriteRequest::builder().put_request(put).build())
    }

    pub(super) fn delete_request(&self, key: Item) -> Result<WriteRequest> {
        let delete = aws_sdk_dynamodb::types::DeleteRequest::builder().set_key(Some(key)).build().map_err(|e| self.unbuilt(e))?;
        Ok(WriteRequest::builder().delete_request(delete).build())
    }

    fn unbuilt(&self, error: aws_sdk_dynamodb::error::BuildError) -> Error {
        Error::new(ErrorKind::Internal, Op::SaveState, &*self.table).with_source(error)
    }

    /// Items of a partition whose sort keys lie between two, both included, in their order; at most `max`.
    pub(super) async fn range(&self, pk: &str, from: &str, to: &str, filter: &Expression, max: usize) -> Result<Vec<Item>> {
        let mut found = Vec::new();
        let mut after: Option<Item> = None;
        loop {
            let mut names: HashMap<String, String> = filter.names().unwrap_or_default();
            names.extend([("#pk".to_owned(), "pk".to_owned()), ("#sk".to_owned(), "sk".to_owned())]);
            let mut values = filter.values().unwrap_or_default();
            values.extend([(":pk", pk), (":from", from), (":to", to)].map(|(name, value)| (name.to_owned(), text(value))));
            let call = self
                .client
                .query()
                .table_name(&*self.table)
                .key_condition_expression("#pk = :pk AND #sk BETWEEN :from AND :to")
                .set_filter_expression(filter.condition())
                .set_expression_attribute_names(Some(names))
                .set_expression_attribute_values(Some(values))
                .set_exclusive_start_key(after)
                .set_limit(i32::try_from(max - found.len()).ok().filter(|_| filter.condition().is_none()))
                .consistent_read(true);
            let call = || async { call.clone().send().await.map_err(|e| classify(Op::LoadState, &*self.table, e)) };
            let page = self.one_of_many(call).await?;
            found.extend(page.items.unwrap_or_default());
            after = page.last_evaluated_key;
            if after.is_none() || found.len() >= max {
                found.truncate(max);
                return Ok(found);
            }
        }
    }
}
