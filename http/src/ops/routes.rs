//! The operations that the S3 layer does not know, or of which it lacks parts: `?encryption` of buckets and of objects.

use std::rc::Rc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri};
use http_body_util::BodyExt as _;
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};
use send_wrapper::SendWrapper;

use super::update_object_encryption::update_object_encryption;
use super::{Inner, Store, bucket_encryption};
use crate::auth;
use crate::service::guard::Place;

/// Takes the requests of those operations.
pub struct Encryption(Store);

impl Encryption {
    pub fn new(store: Store) -> Self {
        Encryption(store)
    }
}

#[async_trait::async_trait]
impl S3Route for Encryption {
    fn is_match(
        &self,
        method: &Method,
        uri: &Uri,
        _: &HeaderMap,
        extensions: &mut Extensions,
    ) -> bool {
        let place = extensions.get::<Place>();
        let of_object = place.is_some_and(|place| !place.key.is_empty());
        let known = matches!(
            (method, of_object),
            (&Method::PUT, _) | (&Method::GET, false)
        );
        known && place.is_some() && parameter(uri, "encryption").is_some()
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        auth::check_owner(&request.headers)?;
        let run = SendWrapper::new({
            let inner = Rc::clone(&self.0.inner);
            async move { answer(&inner, request).await }
        });
        run.await
    }
}

async fn answer(inner: &Inner, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
    let place = request.extensions.get::<Place>().cloned();
    let place = place.ok_or_else(|| s3_error!(InternalError))?;
    if request.method == Method::GET {
        let xml = bucket_encryption::get_bucket_encryption(inner, &place.bucket)?;
        let mut response = S3Response::new(Body::from(xml));
        let kind = HeaderValue::from_static("application/xml");
        response.headers.insert(CONTENT_TYPE, kind);
        return Ok(response);
    }
    let version = parameter(&request.uri, "versionId");
    let headers = request.headers;
    // It was gathered, within a bound, before the request came here.
    let body: Bytes = request
        .input
        .collect()
        .await
        .map_err(|_| s3_error!(IncompleteBody))?
        .to_bytes();
    match place.key.as_str() {
        "" => {
            bucket_encryption::put_bucket_encryption(inner, &place.bucket, &headers, &body).await?;
        }
        _ => {
            let version = version.as_deref();
            update_object_encryption(inner, &place, version, &headers, &body).await?;
        }
    }
    Ok(S3Response::new(Body::empty()))
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    form_urlencoded::parse(uri.query()?.as_bytes())
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.into_owned())
}
