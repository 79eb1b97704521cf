// Package sigv4 checks who has signed a request to a stand-in for an AWS service, as
// the service would:
//
//	verifier := sigv4.Verifier{Service: "kms", Regions: regions, Find: find}
//	signer, refused := verifier.Verify(request, body)
//
// Signature Version 4 is described in the AWS IAM user guide, "Create a signed AWS API
// request".
package sigv4

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
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

// Credentials sign requests.
type Credentials struct {
	AccessKeyID, SecretAccessKey string
	SessionToken                 string // of temporary credentials; empty: none
}

// NewCredentials makes credentials that nobody else has.
func NewCredentials() Credentials {
	return Credentials{AccessKeyID: "AKIA" + rand.Text()[:16], SecretAccessKey: rand.Text() + rand.Text()}
}

// Environment has the AWS SDK sign with the credentials, and look for no others.
func (c Credentials) Environment() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + c.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + c.SecretAccessKey, "AWS_EC2_METADATA_DISABLED=true"}
}

// Verifier checks signatures for a service.
type Verifier struct {
	Service string   // as signatures name it, "kms"
	Regions []string // that it answers for
	// Find gives the credentials of an access key id.
	Find func(accessKeyID string) (Credentials, bool)
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// Signer is who has signed a request, and for which region.
type Signer struct{ AccessKeyID, Region string }

// Refusal is why a request is not believed, as AWS names it.
type Refusal struct{ Code, Message string }

func refuse(code, format string, args ...any) (Signer, *Refusal) {
	return Signer{}, &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// authorization is a Signature Version 4 header.
var authorization = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([A-Za-z0-9]+)/([0-9]{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request, ?SignedHeaders=([a-z0-9;-]+), ?Signature=[0-9a-f]{64}$`)

// Verify makes the signature again, with the SDK's own signer, over the headers that
// the request says are signed, and compares.
func (v Verifier) Verify(r *http.Request, body []byte) (Signer, *Refusal) {
	given := r.Header.Get("Authorization")
	if given == "" {
		return refuse("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	parts := authorization.FindStringSubmatch(given)
	if parts == nil || parts[4] != v.Service {
		return refuse("IncompleteSignatureException", "Authorization header is not of Signature Version 4 for %s", v.Service)
	}
	by, day, signed := Signer{AccessKeyID: parts[1], Region: parts[3]}, parts[2], strings.Split(parts[5], ";")
	known, ok := v.Find(by.AccessKeyID)
	if !ok || subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Amz-Security-Token")), []byte(known.SessionToken)) != 1 {
		return refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	if !slices.Contains(v.Regions, by.Region) {
		return refuse("InvalidSignatureException", "Credential should be scoped to a valid region.")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || at.Format("20060102") != day {
		return refuse("IncompleteSignatureException", "X-Amz-Date is missing, or not of the credential's day")
	}
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	if skew := now().Sub(at); skew > maxSkew || skew < -maxSkew {
		return refuse("InvalidSignatureException", "Signature expired: the request's date is %s from now", skew)
	}
	if refused := mustBeSigned(r, signed); refused != nil {
		return Signer{}, refused
	}
	want, err := v.sign(r, body, signed, known, by.Region, at)
	if err != nil {
		return refuse("IncompleteSignatureException", "%v", err)
	}
	if subtle.ConstantTimeCompare([]byte(spaceless(want)), []byte(spaceless(given))) != 1 {
		return refuse("InvalidSignatureException", "The request signature we calculated does not match the signature you provided.")
	}
	return by, nil
}

// sign gives the header that the owner of the credentials would have sent.
func (v Verifier) sign(r *http.Request, body []byte, signed []string, known Credentials, region string, at time.Time) (string, error) {
	again := &http.Request{Method: r.Method, Host: r.Host, URL: &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawQuery: r.URL.RawQuery}, Header: http.Header{}}
	for _, name := range signed {
		if name == "content-length" {
			again.ContentLength = r.ContentLength
		} else if name != "host" {
			again.Header[http.CanonicalHeaderKey(name)] = slices.Clone(r.Header.Values(name))
		}
	}
	digest := sha256.Sum256(body)
	credentials := aws.Credentials{AccessKeyID: known.AccessKeyID, SecretAccessKey: known.SecretAccessKey, SessionToken: known.SessionToken}
	err := v4.NewSigner().SignHTTP(context.Background(), credentials, again, hex.EncodeToString(digest[:]), v.Service, region, at)
	return again.Header.Get("Authorization"), err
}

func spaceless(s string) string { return strings.ReplaceAll(s, " ", "") }

// mustBeSigned refuses requests of which what matters could be changed on the way.
func mustBeSigned(r *http.Request, signed []string) *Refusal {
	if !slices.IsSorted(signed) || !slices.Contains(signed, "host") {
		_, refused := refuse("InvalidSignatureException", "'Host' must be a 'SignedHeader' in the AWS Authorization.")
		return refused
	}
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") && !slices.Contains(signed, lower) {
			_, refused := refuse("InvalidSignatureException", "There were headers present in the request which were not signed: %s", lower)
			return refused
		}
	}
	return nil
}
