//! Several routes in front of the S3 layer, which takes but one: the first that matches has the request.

use std::sync::Arc;

use http::{Extensions, HeaderMap, Method, Uri};
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::access::Access;
use super::guard::Place;

/// The routes, in order. Each asks for a signature, for this region.
pub struct Routes {
    routes: Vec<Arc<dyn S3Route>>,
    access: Access,
}

/// Which of them matched.
#[derive(Clone)]
struct Matched(Arc<dyn S3Route>);

impl Routes {
    pub fn new(routes: Vec<Arc<dyn S3Route>>, access: Access) -> Self {
        let last: Arc<dyn S3Route> = Arc::new(Unanswered);
        let routes = routes.into_iter().chain([last]).collect();
        Routes { routes, access }
    }
}

/// What the S3 layer would take for the write of an object, where no route has taken it.
struct Unanswered;

#[async_trait::async_trait]
impl S3Route for Unanswered {
    fn is_match(
        &self,
        method: &Method,
        uri: &Uri,
        _: &HeaderMap,
        extensions: &mut Extensions,
    ) -> bool {
        let of_object = extensions.get::<Place>().is_some_and(|p| !p.key.is_empty());
        let query = uri.query().unwrap_or_default();
        let mut names = form_urlencoded::parse(query.as_bytes());
        method == Method::PUT && of_object && names.any(|(name, _)| name == "encryption")
    }

    async fn call(&self, _: S3Request<Body>) -> S3Result<S3Response<Body>> {
        Err(s3_error!(
            NotImplemented,
            "The requested subresource is not implemented."
        ))
    }
}

#[async_trait::async_trait]
impl S3Route for Routes {
    fn is_match(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        extensions: &mut Extensions,
    ) -> bool {
        let matches = |route: &&Arc<dyn S3Route>| route.is_match(method, uri, headers, extensions);
        let Some(route) = self.routes.iter().find(matches) else {
            return false;
        };
        let route = Arc::clone(route);
        extensions.insert(Matched(route));
        true
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        if request.credentials.is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        self.access.check_region(&request.headers, &request.uri)
    }

    async fn call(&self, mut request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        match request.extensions.remove::<Matched>() {
            Some(Matched(route)) => route.call(request).await,
            None => Err(s3_error!(InternalError)),
        }
    }
}
