//! `POST /tokens`: something to prove oneself with.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use secrecy::ExposeSecret;
use seiketsu_config::values::Id;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AppState, Problem,
    body::Json,
    caller::Caller,
    idempotency::{Key, again, kept},
    problem::ProblemDocument,
};
use crate::store::{
    operators::{AnswerOf, ManageError},
    tokens::{NewToken, TokenKind, TokenRow},
};

const LONGEST_NAME: usize = 100;

/// A token that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenBody {
    kind: TokenKind,
    /// What it is for, in 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Whose it is; for tokens of operators.
    operator: Option<Uuid>,
    /// The one node that it is for; for tokens of nodes. Absent: it is for any node, as fleets need it whose nodes come and
    /// go. Whoever has such a token can take the place of each of them that has no token of its own.
    #[schema(value_type = Option<String>)]
    node: Option<Id>,
    /// Until when it holds. Absent: until it is deleted.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<OffsetDateTime>,
}

/// A token that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenAnswer {
    #[serde(flatten)]
    row: TokenRow,
    /// Shown this once. None, if the request was repeated: it is not kept.
    token: Option<String>,
}

/// A token for an operator whose role is not above the caller's, or for nodes.
#[utoipa::path(
    post, path = "/tokens", tag = "tokens", params(
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to repeat the request"),
    ),
    request_body = TokenBody,
    responses(
        (status = 201, description = "It was made", body = TokenAnswer),
        (status = "default", description = "What went wrong", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_token(
    State(state): State<AppState>,
    caller: Caller,
    key: Key,
    Json { value, text }: Json<TokenBody>,
) -> Result<Response, Problem> {
    let new = value.checked()?;
    let once = key.once(&text);
    let answer = |row: &TokenRow| kept(StatusCode::CREATED, &TokenAnswer { row: row.clone(), token: None });
    let once = once.as_ref().map(|once| (once, &answer as AnswerOf<'_, TokenRow>));
    match state.store.create_token(&caller.author, caller.role(), new, once).await {
        Ok((row, token)) => {
            let token = Some(token.expose_secret().to_owned());
            Ok((StatusCode::CREATED, axum::Json(TokenAnswer { row, token })).into_response())
        }
        Err(ManageError::Repeated(before)) => Ok(again(before)),
        Err(error) => Err(error.into()),
    }
}

impl TokenBody {
    fn checked(self) -> Result<NewToken, Problem> {
        let Self { kind, name, operator, node, expires_at } = self;
        if !(1..=LONGEST_NAME).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            let fix = "write what the token is for, in 1 to 100 characters of one line";
            return Err(Problem::invalid_at(
                "name",
                "the name is empty, too long or has control characters",
                Some(fix),
            ));
        }
        match (kind, operator) {
            (TokenKind::Operator, None) => {
                return Err(Problem::invalid_at(
                    "operator",
                    "whose token it is is missing",
                    Some("add the operator's id"),
                ));
            }
            (TokenKind::Node, Some(_)) => {
                return Err(Problem::invalid_at("operator", "a token for nodes has no operator", Some("remove it")));
            }
            _ => {}
        }
        if kind == TokenKind::Operator && node.is_some() {
            return Err(Problem::invalid_at("node", "a token of an operator is for no node", Some("remove it")));
        }
        if expires_at.is_some_and(|expires| expires <= OffsetDateTime::now_utc()) {
            return Err(Problem::invalid_at("expires_at", "it lies in the past", Some("write a time to come")));
        }
        Ok(NewToken { kind, name, operator, node, expires_at })
    }
}
