//! What is decided of a request once its signature holds and before its body is read: that somebody signed it, for this region.

use http::{HeaderMap, Uri};
use s3s::access::{S3Access, S3AccessContext};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::body::sigv4::{Authorization, Scope};
use crate::error::element;

/// Root is the only user, and may do everything.
#[derive(Clone)]
pub struct Access {
    region: String,
}

impl Access {
    /// Requests have to be signed for `region`.
    pub fn new(region: impl Into<String>) -> Self {
        Access {
            region: region.into(),
        }
    }

    pub fn check_region(&self, headers: &HeaderMap, uri: &Uri) -> S3Result<()> {
        let Some(signed_for) = signed_region(headers, uri) else {
            return Ok(());
        };
        if signed_for == self.region {
            return Ok(());
        }
        let message = format!(
            "The authorization header is malformed; the region '{signed_for}' is wrong; expecting '{}'",
            self.region
        );
        let fault = S3Error::with_message(S3ErrorCode::AuthorizationHeaderMalformed, message);
        Err(element(fault, "Region", &self.region))
    }
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if cx.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        // Clients ask for a bucket's region before they know it.
        if cx.s3_op().name() == "GetBucketLocation" {
            return Ok(());
        }
        self.check_region(cx.headers(), cx.uri())
    }
}

fn signed_region(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    if let Some(header) = headers.get(http::header::AUTHORIZATION) {
        let authorization = Authorization::parse(header.to_str().ok()?)?;
        return Some(authorization.scope.region.to_owned());
    }
    let (_, credential) = form_urlencoded::parse(uri.query()?.as_bytes())
        .find(|(name, _)| name == "X-Amz-Credential")?;
    Scope::parse(&credential).map(|scope| scope.region.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_that_of_the_credential() {
        let access = Access::new("eu-1");
        let none = HeaderMap::new();
        let presigned = |region: &str| -> Uri {
            format!("/b/k?X-Amz-Credential=AK%2F20260101%2F{region}%2Fs3%2Faws4_request")
                .parse()
                .unwrap()
        };
        assert!(access.check_region(&none, &presigned("eu-1")).is_ok());
        let error = access
            .check_region(&none, &presigned("us-east-1"))
            .unwrap_err();
        assert_eq!(error.code(), &S3ErrorCode::AuthorizationHeaderMalformed);
        assert!(error.message().unwrap().contains("expecting 'eu-1'"));
    }
}
