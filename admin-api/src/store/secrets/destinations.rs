//! Secrets that are for one receiver open for that one alone: where it is belongs to their place. So whoever changes an
//! address in the store is not sent what was meant for another.

use sea_orm::{ConnectionTrait, DatabaseTransaction};
use url::Url;

use super::{Keys, Place, SEALED, rotation};
use crate::store::{StoreError, cursors};

/// That everything was sealed for its receiver that was there when this was begun with.
const BOUND: &str = "secrets-of-receivers";

/// What of an address says who is reached: scheme, host and port. Of what is no address, all of it.
pub(in crate::store) fn destination(url: &str) -> String {
    let read = Url::parse(url).ok();
    let read = read.and_then(|url| {
        let port = url.port_or_known_default().map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{}://{}{port}", url.scheme(), url.host_str()?))
    });
    read.unwrap_or_else(|| url.to_owned())
}

/// Seals for their receivers what a store of an earlier release has sealed for their rows alone. Once.
pub(in crate::store) async fn bind_to_receivers(
    transaction: &DatabaseTransaction,
    keys: &Keys,
) -> Result<(), StoreError> {
    if cursors::get(transaction, BOUND).await?.is_some() {
        return Ok(());
    }
    for column in SEALED.iter().filter(|column| column.is_for_receiver) {
        for found in rotation::sealed(transaction, column, "", None).await? {
            let before = Place { destination: "", ..found.place(column) };
            // What does not open was altered: it stays as it is, and is told of where it is used.
            let Ok(secret) = keys.open(before, &found.text) else { continue };
            let again = keys.seal(found.place(column), &secret)?;
            let update = found.replace(column, again, transaction.get_database_backend());
            transaction.execute_raw(update).await?;
        }
    }
    cursors::set(transaction, BOUND, 1).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_who_is_reached_and_not_what_is_asked_for_there() {
        for (url, expected) in [
            ("https://siem.example/a?b", "https://siem.example:443"),
            ("https://SIEM.example:443/c", "https://siem.example:443"),
            ("https://siem.example:8443/", "https://siem.example:8443"),
            ("http://siem.example/", "http://siem.example:80"),
            ("syslogs://siem.example:6514", "syslogs://siem.example:6514"),
            ("https://[::1]/", "https://[::1]:443"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(destination(url), expected);
        }
    }
}
