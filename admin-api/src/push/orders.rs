//! What nodes are to do at once: passed on as it is given, by whichever replica; and at first what a node has missed that
//! was away.

use std::convert::Infallible;

use seiketsu_config::push::{self, Carried, Hello, Order, ToNode};
use time::OffsetDateTime;
use tokio::time::sleep;

use super::{
    Shared,
    session::{End, RETRY, Sink, send},
    updates::message,
};
use crate::store::StoreError;

/// `former`: when the node was last heard of before.
pub(super) async fn pass_on(
    shared: &Shared,
    sink: &Sink,
    hello: &Hello,
    former: Option<OffsetDateTime>,
) -> Result<Infallible, End> {
    let mut newest = shared.store.orders();
    let missed = loop {
        match shared.store.orders_missed(&hello.node, hello.run, former).await {
            Ok(missed) => break missed,
            Err(error) => wait(hello, &error).await,
        }
    };
    if hello.orders {
        for order in missed.orders {
            give(sink, order).await?;
        }
    }
    let mut told = missed.upto;
    loop {
        let upto = *newest.borrow_and_update();
        if upto <= told {
            newest.changed().await.map_err(|_| End::Draining)?;
            continue;
        }
        // A page at a time. Of one that holds none, all have been forgotten already, or were refused.
        match shared.store.orders_after(told, upto).await {
            Ok(page) => {
                for row in page.orders {
                    if hello.orders {
                        give(sink, row.order).await?;
                    } else {
                        let error = Some("its release takes no orders: upgrade it".to_owned());
                        carried(shared, hello, &Carried { id: row.order.id, done: true, error, warmed: None }).await;
                    }
                }
                told = page.upto;
            }
            Err(error) => wait(hello, &error).await,
        }
    }
}

/// Keeps what a node has answered. What is lost of it is asked for again when the node connects the next time.
pub(super) async fn carried(shared: &Shared, Hello { node, run, .. }: &Hello, carried: &Carried) {
    if let Some(error) = &carried.error {
        tracing::warn!(%node, order = %carried.id, error, "a node has not carried out an order");
    }
    if let Err(error) = shared.store.order_carried(node, *run, carried).await {
        tracing::warn!(%node, %error, "cannot note what a node has done");
    }
}

async fn give(sink: &Sink, order: Order) -> Result<(), End> {
    send(sink, message(push::write(&ToNode::Order(Box::new(order)))?)).await
}

async fn wait(Hello { node, .. }: &Hello, error: &StoreError) {
    tracing::warn!(%node, %error, "cannot read what a node has to do; trying again");
    sleep(RETRY).await;
}
