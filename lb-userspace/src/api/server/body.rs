//! Requests in, answers out.

use std::time::Duration;

use axum::Json;
use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::super::{ApiError, ErrorCode};

/// The largest body that is read, in bytes.
pub(super) const LARGEST: usize = 8 << 20;
/// How long a client may take to send a body.
const PATIENCE: Duration = Duration::from_secs(30);

/// The body of a request. An empty one is an empty object. What `Content-Type` says is not looked at, so that
/// `curl --data` works as it is.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Said at once, not when it has arrived.
        if request.body().size_hint().lower() > LARGEST as u64 {
            return Err(too_large());
        }
        let bytes = timeout(PATIENCE, Bytes::from_request(request, state)).await.map_err(|_| {
            let message = format!("the body did not arrive within {PATIENCE:?}");
            ApiError::new(ErrorCode::BadRequest, message)
        })?;
        let bytes = bytes.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => {
                let message = format!("the body cannot be read: {}", rejection.body_text());
                ApiError::new(ErrorCode::BadRequest, message)
            }
        })?;
        let text: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => ApiError::new(
                ErrorCode::InvalidValue,
                format!("the body does not say what is needed: {error}"),
            ),
            _ => ApiError::new(ErrorCode::BadRequest, format!("the body is not JSON: {error}")),
        })
    }
}

fn too_large() -> ApiError {
    ApiError::new(ErrorCode::TooLarge, format!("the body is larger than {} MiB", LARGEST >> 20))
}

/// The query of a request.
pub(super) struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(query) = Query::from_request_parts(parts, state).await.map_err(|rejection| {
            ApiError::new(ErrorCode::BadRequest, rejection.body_text())
                .remedy("see the parameters of that path in the documentation of the API")
        })?;
        Ok(Self(query))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.kind().unwrap_or(ErrorCode::Internal).status();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}
