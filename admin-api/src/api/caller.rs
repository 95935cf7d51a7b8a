//! Who calls, and whether they may: the token, the role, the tenants. Refusals are kept in the audit trail, those of
//! changes too.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use secrecy::SecretString;
use seiketsu_config::values::Id;

use super::{
    AppState, BASE, Problem, RequestId, body,
    operations::{self, Operation, Scope},
    problem::Kind,
    turns::Turn,
};
use crate::{
    serve::HangUp,
    store::{
        Author, Principal,
        audit::Entry,
        operators::{Operator, Role},
        tokens::{self, TokenKind},
    },
};

/// The operator who calls, and what they call.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) operator: Operator,
    pub(super) author: Author,
    /// Of this request.
    pub(super) turn: Arc<Turn>,
}

impl Caller {
    pub(super) fn role(&self) -> Role {
        self.operator.role
    }

    /// Whether the operator may see and change this tenant. Whether there is one is told only to those who may.
    pub(super) fn may_touch(&self, tenant: &Id) -> Result<(), Problem> {
        match &self.operator.tenants {
            Some(tenants) if !tenants.contains(tenant) => {
                Err(Problem::new(Kind::Forbidden, format!("the operator is not for the tenant {tenant}")))
            }
            _ => Ok(()),
        }
    }

    /// The tenants whose numbers are shown: one that was asked for, or all that the operator may see. None: all there are.
    pub(super) fn sees(&self, tenant: Option<&Id>) -> Result<Option<BTreeSet<Id>>, Problem> {
        match tenant {
            Some(tenant) => self.may_touch(tenant).map(|()| Some(BTreeSet::from([tenant.clone()]))),
            None => Ok(self.operator.tenants.clone()),
        }
    }

    /// Of a tenant, or else of all.
    pub(super) fn may_touch_what_is_of(&self, tenant: Option<&Id>) -> Result<(), Problem> {
        tenant.map_or_else(|| self.may_touch_all(), |tenant| self.may_touch(tenant))
    }

    /// Whether the operator is for named tenants only.
    pub(super) fn is_scoped(&self) -> bool {
        self.operator.tenants.is_some()
    }

    fn may_touch_all(&self) -> Result<(), Problem> {
        match &self.operator.tenants {
            Some(_) => Err(Problem::new(Kind::Forbidden, "this is for operators of all tenants")),
            None => Ok(()),
        }
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        // Without `guard` nobody gets anywhere.
        parts.extensions.get().cloned().ok_or_else(|| Problem::new(Kind::Unauthenticated, "no token was sent"))
    }
}

/// Lets through who may call the operation, and keeps what was refused.
pub(super) async fn guard(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let path = path.strip_prefix(BASE).unwrap_or_default();
    let Some(operation) = operations::find(request.method(), path) else {
        return operations::not_found(request.method(), path).into_response();
    };
    let mut author = Author {
        id: None,
        name: "anonymous".to_owned(),
        address,
        request: request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default(),
        action: operation.id,
    };
    let response = match admit(&state, operation, request.headers(), &mut author).await {
        Ok(caller) => {
            in_turn(&state, operation, caller, request, next).await.unwrap_or_else(IntoResponse::into_response)
        }
        Err(problem) => problem.into_response(),
    };
    keep_refusal(&state, operation, &author, response).await
}

/// Carries it out when it is its turn.
async fn in_turn(
    state: &AppState,
    operation: &Operation,
    caller: Caller,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let operator = &caller.operator;
    let turn = Arc::new(state.turns.take(operator).await?);
    if operation.is_heavy() {
        let mut room = None;
        // Whoever sends a body slowly holds up nobody's heavy request.
        if let Some(most) = operation.heavy_body() {
            room = Some(state.turns.make_room(operator).await?);
            request = body::arrived(request, most).await?;
        }
        let hang_up = request.extensions().get::<HangUp>().cloned();
        state.turns.take_heavy(&turn, operator, hang_up).await?;
        drop(room);
    }
    request.extensions_mut().insert(Caller { turn: Arc::clone(&turn), ..caller });
    let response = next.run(request).await;
    if operation.is_heavy() {
        return Ok(response.map(|answer| turn.until_taken(answer)));
    }
    turn.end();
    Ok(response)
}

async fn admit(
    state: &AppState,
    operation: &Operation,
    headers: &HeaderMap,
    author: &mut Author,
) -> Result<Caller, Problem> {
    let address = author.address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    // The token comes first: others behind the same address, who try tokens, must not lock out one that holds.
    let found = match bearer(headers).filter(|token| tokens::is_formed(TokenKind::Operator, token)) {
        Some(token) if !state.doorkeeper.is_unknown(&token) => {
            let found = state.store.operator_token(&token).await?;
            if found.is_none() {
                state.doorkeeper.add_unknown(&token);
            }
            found
        }
        _ => None,
    };
    let Some((operator, token)) = found else {
        state.doorkeeper.has_failed(address).map_err(too_many)?;
        return Err(Problem::new(Kind::Unauthenticated, "no token was sent, or one that does not hold"));
    };
    author.id = Some(Principal { operator: operator.id, revision: operator.revision, token: token.id });
    author.name = operator.name.to_string();
    state.requests.take(token.id).map_err(too_many)?;
    let caller = Caller { operator, author: author.clone(), turn: Arc::default() };
    if caller.role() < operation.least {
        let detail = format!("this is for the role {} and above", operation.least.as_str());
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    if operation.scope == Scope::All {
        caller.may_touch_all()?;
    }
    Ok(caller)
}

fn too_many(seconds: u64) -> Problem {
    Problem::new(Kind::TooMany, "too many requests").retry_after(seconds)
}

/// RFC 6750 §2.1.
pub(super) fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned().into())
}

async fn keep_refusal(state: &AppState, operation: &Operation, author: &Author, response: Response) -> Response {
    let status = response.status();
    let of_rights = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let of_change = operation.writes() && status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS;
    if !of_rights && !of_change {
        return response;
    }
    let mut entry = Entry::refused().with("status", status.as_u16());
    if let Some(problem) = response.extensions().get::<Problem>() {
        // Short: it may repeat what was sent.
        let detail: String = problem.detail.chars().take(200).collect();
        entry = entry.with("type", problem.kind.type_uri()).with("detail", detail);
    }
    match state.doorkeeper.keep(author, entry).await {
        Ok(()) => response,
        Err(error) => Problem::from(error).into_response(),
    }
}
