// Package awscall is how an enclave calls AWS: one signed request of the JSON
// protocol, over TLS that ends in the enclave.
//
//	client, err := awscall.New(awscall.Config{Service: awscall.KMS, Region: "us-east-1", Dial: dial})
//	client.SetCredentials(credentials)
//	err = client.Call(ctx, "Decrypt", request, &answer)
//
// Dial gives a pipe that the parent carries, who sees TLS records; TLS trusts
// Amazon's own roots only, which are part of the measured image. Credentials come
// from the parent, too: they say on whose behalf AWS is asked.
//
// Why it is not the AWS SDK: that brings some 60 packages, with endpoint rules,
// credential chains, retries and plug-ins, into a binary of which every line must
// be trusted. Requests that are always of the same shape take an HMAC and a hash.
// Tests hold it against the SDK's own signer.
//
// The package is part of the measured enclave. It logs nothing.
package awscall

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed" // for Amazon's roots
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// Credentials are of AWS.
type Credentials struct {
	AccessKeyID, SecretAccessKey string
	SessionToken                 string // of temporary ones; empty: none
}

// Service is one of AWS's, with its way of writing the JSON protocol.
type Service struct {
	name        string // in the signature's scope, and in the host
	target      string // before the operation's name in X-Amz-Target
	contentType string
}

// Services that enclaves call.
var (
	KMS      = Service{name: "kms", target: "TrentService.", contentType: "application/x-amz-json-1.1"}
	DynamoDB = Service{name: "dynamodb", target: "DynamoDB_20120810.", contentType: "application/x-amz-json-1.0"}
)

// Config says where a service is, and who asks.
type Config struct {
	Service Service // required
	Region  string  // of AWS: "us-east-1". Required
	Host    string  // default: SERVICE.REGION.amazonaws.com
	// Dial connects to port 443 of Host, as bytes. Required.
	Dial func(context.Context) (net.Conn, error)
	// Roots verify Host's certificate; nil: Amazon's.
	Roots *x509.CertPool
	Now   func() time.Time // default: time.Now
}

// Client asks one region's service. It is safe for concurrent use.
type Client struct {
	config      Config
	http        *http.Client
	credentials atomic.Pointer[Credentials]
}

//go:embed amazon-roots.pem
var amazonRoots []byte

// AmazonRoots are the roots of Amazon Trust Services, G1 to G4, that certify
// AWS's endpoints.
func AmazonRoots() *x509.CertPool {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(amazonRoots) {
		panic("awscall: embedded roots") // no input reaches this; a test parses them
	}
	return pool
}

const (
	// timeout bounds a call, unless its context ends sooner. Services answer in 100 ms.
	timeout = 5 * time.Second
	// maxAnswerBytes is above what a call returns.
	maxAnswerBytes = 64 << 10
)

// New makes a client. It connects to nothing yet.
func New(config Config) (*Client, error) {
	if config.Service.name == "" || config.Region == "" || config.Dial == nil {
		return nil, errors.New("want a service, a region and a way to dial")
	}
	config.Host = cmp.Or(config.Host, config.Service.name+"."+config.Region+".amazonaws.com")
	config.Roots = cmp.Or(config.Roots, AmazonRoots())
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Client{config: config, http: &http.Client{
		Transport: &http.Transport{
			DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return config.Dial(ctx) },
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: config.Roots, ServerName: config.Host, Time: config.Now},
			TLSHandshakeTimeout: timeout,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// CloseIdleConnections closes connections that no call uses.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// SetCredentials has calls signed with these from now on.
func (c *Client) SetCredentials(credentials Credentials) { c.credentials.Store(&credentials) }

// AccessKeyID names the credentials that are held; empty: none yet.
func (c *Client) AccessKeyID() string {
	if held := c.credentials.Load(); held != nil {
		return held.AccessKeyID
	}
	return ""
}

// Refusal is the service's own error.
type Refusal struct {
	Status int
	Code   string // "AccessDeniedException"; "no code" for what is none
	Body   []byte // JSON, of whoever has answered: not for logs
}

func (r *Refusal) Error() string { return fmt.Sprintf("status %d, %s", r.Status, r.Code) }

// Call has the service do an operation: request and answer are JSON. An error is a
// [*Refusal], or everything else that can go wrong on the way. A request may be
// carried out without its answer arriving, and is sent a second time when an idle
// connection turns out to be dead.
func (c *Client) Call(ctx context.Context, operation string, request, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	credentials := c.credentials.Load()
	if credentials == nil {
		return errors.New("no credentials yet")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.config.Host+"/", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header["Idempotency-Key"] = nil // lets net/http send it again when an idle connection turns out to be dead; it is not sent itself
	c.config.sign(req, operation, body, *credentials)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswerBytes))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.StatusCode, text)
	}
	if json.Unmarshal(text, answer) != nil {
		return errors.New("its answer is not the JSON that was asked for") // whose error might quote it
	}
	return nil
}

var plainCode = regexp.MustCompile(`^[A-Za-z]{1,64}$`)

// refusal reads an error answer of the JSON protocol: its "__type" is the code,
// perhaps after a namespace and "#". The message stays out: it is whoever's
// answered.
func refusal(status int, body []byte) error {
	var answer struct {
		Type string `json:"__type"`
	}
	_ = json.Unmarshal(body, &answer) // what is not JSON has no code
	code := answer.Type[strings.LastIndex(answer.Type, "#")+1:]
	if !plainCode.MatchString(code) {
		code = "no code"
	}
	return &Refusal{Status: status, Code: code, Body: body}
}
