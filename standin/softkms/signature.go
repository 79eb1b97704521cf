package softkms

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// maxSkew is how far a request's date may be from the service's clock.
const maxSkew = 5 * time.Minute

// authorization is a Signature Version 4 header (AWS IAM user guide, "Create a
// signed AWS API request").
var authorization = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([A-Za-z0-9]+)/([0-9]{8})/([a-z0-9-]+)/kms/aws4_request, ?SignedHeaders=([a-z0-9;-]+), ?Signature=[0-9a-f]{64}$`)

// authenticate gives who has signed the request, and the region that it is for.
// It makes the signature again, with the SDK's own signer, over the headers that
// the request says are signed, and compares.
func (s *Service) authenticate(r *http.Request, body []byte) (Principal, string, *apiError) {
	given := r.Header.Get("Authorization")
	if given == "" {
		return Principal{}, "", errorf("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	parts := authorization.FindStringSubmatch(given)
	if parts == nil {
		return Principal{}, "", errorf("IncompleteSignatureException", "Authorization header is not of Signature Version 4 for kms")
	}
	accessKeyID, day, region, signed := parts[1], parts[2], parts[3], strings.Split(parts[4], ";")
	p, ok := s.principal(accessKeyID)
	if !ok || subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Amz-Security-Token")), []byte(p.Credentials.SessionToken)) != 1 {
		return Principal{}, "", errorf("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	if !s.answersFor(region) {
		return Principal{}, "", errorf("InvalidSignatureException", "Credential should be scoped to a valid region.")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || at.Format("20060102") != day {
		return Principal{}, "", errorf("IncompleteSignatureException", "X-Amz-Date is missing, or not of the credential's day")
	}
	if skew := s.config.Now().Sub(at); skew > maxSkew || skew < -maxSkew {
		return Principal{}, "", errorf("InvalidSignatureException", "Signature expired: the request's date is %s from now", skew)
	}
	if refused := mustBeSigned(r, signed); refused != nil {
		return Principal{}, "", refused
	}
	again := &http.Request{Method: r.Method, Host: r.Host, URL: &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawQuery: r.URL.RawQuery}, Header: http.Header{}}
	for _, name := range signed {
		if name == "content-length" {
			again.ContentLength = r.ContentLength
		} else if name != "host" {
			again.Header[http.CanonicalHeaderKey(name)] = slices.Clone(r.Header.Values(name))
		}
	}
	digest := sha256.Sum256(body)
	credentials := aws.Credentials{
		AccessKeyID: p.Credentials.AccessKeyID, SecretAccessKey: p.Credentials.SecretAccessKey, SessionToken: p.Credentials.SessionToken,
	}
	if err := v4.NewSigner().SignHTTP(context.Background(), credentials, again, hex.EncodeToString(digest[:]), "kms", region, at); err != nil {
		return Principal{}, "", errorf("IncompleteSignatureException", "%v", err)
	}
	want := again.Header.Get("Authorization")
	if subtle.ConstantTimeCompare([]byte(spaceless(want)), []byte(spaceless(given))) != 1 {
		return Principal{}, "", errorf("InvalidSignatureException", "The request signature we calculated does not match the signature you provided.")
	}
	return p, region, nil
}

func spaceless(s string) string { return strings.ReplaceAll(s, " ", "") }

// mustBeSigned refuses requests of which what matters could be changed on the
// way.
func mustBeSigned(r *http.Request, signed []string) *apiError {
	if !slices.IsSorted(signed) || !slices.Contains(signed, "host") {
		return errorf("InvalidSignatureException", "'Host' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") && !slices.Contains(signed, lower) {
			return errorf("InvalidSignatureException", "There were headers present in the request which were not signed: %s", lower)
		}
	}
	return nil
}
