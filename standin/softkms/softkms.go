// Package softkms stands in for AWS KMS on machines without an AWS account. It
// speaks KMS's own protocol (JSON 1.1 over HTTP, Signature Version 4), so that
// aws-sdk-go-v2/service/kms works unchanged:
//
//	service, err := softkms.New(softkms.Config{Regions: []string{"us-east-1"}, Roots: roots})
//	service.AddPrincipal(softkms.Principal{ARN: "arn:aws:iam::111122223333:role/tenant", Credentials: …})
//	key, err := service.CreateKey("mrk-1234", policy)
//	err = http.Serve(listener, service)
//
// What it does as KMS does:
//
//   - it checks every request's signature, date, region and signed headers;
//   - it lets a principal do what the key's policy allows, and nothing else:
//     there are no IAM policies and no grants, so the key's policy is all;
//   - it verifies the attestation document of a Recipient (package attest), has
//     its PCRs ready for the policy's conditions, and returns the plaintext for
//     the document's RSA key only, as CMS (RFC 5652), and never in clear;
//   - it binds ciphertexts to their encryption context.
//
// It offers GenerateDataKey, Decrypt, Encrypt and ReEncrypt, for symmetric keys.
// A policy that it does not understand to the last word is an error: a condition
// that were ignored would make a test pass for the wrong reason.
//
// It is stricter than KMS in one thing: KMS takes documents of debug mode, whose
// PCRs are zero, and leaves them to the policy's conditions; this refuses them.
// It protects nothing: keys live in the process, for as long as it does.
//
// Nothing but `mrgc up`, benchmarks and tests may import this package.
package softkms

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/mrgc/mrgc/standin/sigv4"
)

// Account is the AWS account of all keys.
const Account = "111122223333"

// Config says where the stand-in stands, and whom it believes.
type Config struct {
	// Regions are the AWS regions that it answers for, one at least. A key whose
	// id begins with "mrk-" can be used in all of them, as a multi-region key with
	// a replica in each; any other in the first only.
	Regions []string
	// Roots verify attestation documents: [attest.AWSRoot], or a development root.
	Roots []*x509.Certificate
	// Audit is told of each call, as CloudTrail is. nil: nobody is. It must not
	// call back into the service.
	Audit func(Event)
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// Event is what is recorded of a call: no key and no plaintext.
type Event struct {
	Action    string // "kms:Decrypt"
	Region    string
	Principal string // ARN; empty when the signature was refused
	Key       string // ARN; empty when none was found
	Context   map[string]string
	PCR0      string // of the recipient's document, in hex; empty without one
	Error     string // error code; empty: it succeeded
}

// Credentials sign requests.
type Credentials = sigv4.Credentials

// Principal is somebody who may sign requests.
type Principal struct {
	ARN         string
	Credentials Credentials
}

// NewPrincipal makes a principal with credentials of its own.
func NewPrincipal(arn string) Principal {
	return Principal{ARN: arn, Credentials: sigv4.NewCredentials()}
}

// Service is the stand-in, an [http.Handler]. It is safe for concurrent use.
type Service struct {
	config Config

	mu         sync.Mutex
	principals map[string]Principal // guarded by mu: by access key id
	keys       map[string]*key      // guarded by mu: by key id; a key that was published does not change
}

// key is a symmetric key.
type key struct {
	id       string
	material [32]byte
	policy   *policy
	disabled bool
}

// New makes a service without principals and keys.
func New(config Config) (*Service, error) {
	if len(config.Regions) == 0 {
		return nil, errors.New("software KMS: no region")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Audit == nil {
		config.Audit = func(Event) {}
	}
	return &Service{config: config, principals: map[string]Principal{}, keys: map[string]*key{}}, nil
}

// AddPrincipal lets a principal sign requests from now on.
func (s *Service) AddPrincipal(p Principal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.principals[p.Credentials.AccessKeyID] = p
}

// ARN is the name of a key in a region.
func ARN(region, keyID string) string {
	return "arn:aws:kms:" + region + ":" + Account + ":key/" + keyID
}

var keyID = regexp.MustCompile(`^[a-z0-9-]{4,64}$`)

// CreateKey makes a key with that id and policy (JSON, as PutKeyPolicy takes),
// and gives its ARN in the first region.
func (s *Service) CreateKey(id string, policyJSON []byte) (arn string, err error) {
	if !keyID.MatchString(id) {
		return "", fmt.Errorf("software KMS: key id %q", id)
	}
	p, err := parsePolicy(policyJSON)
	if err != nil {
		return "", err
	}
	k := &key{id: id, policy: p}
	rand.Read(k.material[:]) // never fails (crypto/rand)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[id] != nil {
		return "", fmt.Errorf("software KMS: key %s is there already", id)
	}
	s.keys[id] = k
	return ARN(s.config.Regions[0], id), nil
}

// PutKeyPolicy replaces a key's policy.
func (s *Service) PutKeyPolicy(id string, policyJSON []byte) error {
	p, err := parsePolicy(policyJSON)
	if err != nil {
		return err
	}
	return s.change(id, func(k *key) { k.policy = p })
}

// SetEnabled enables a key or disables it: a disabled one does nothing.
func (s *Service) SetEnabled(id string, enabled bool) error {
	return s.change(id, func(k *key) { k.disabled = !enabled })
}

// DataKey makes a data key as GenerateDataKey does, without asking the policy: for
// tests and benchmarks of who decrypts it.
func (s *Service) DataKey(id string, context map[string]string) (plaintext, ciphertext []byte, err error) {
	k, refused := s.find(id, s.config.Regions[0])
	if refused != nil {
		return nil, nil, fmt.Errorf("software KMS: %s", refused.message)
	}
	plaintext = make([]byte, 32)
	rand.Read(plaintext) // never fails (crypto/rand)
	return plaintext, k.seal(plaintext, context), nil
}

func (s *Service) change(id string, change func(*key)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.keys[id]
	if old == nil {
		return fmt.Errorf("software KMS: no key %s", id)
	}
	changed := *old
	change(&changed)
	s.keys[id] = &changed
	return nil
}

// find gives the key of an id or ARN as a region knows it.
func (s *Service) find(name, region string) (*key, *apiError) {
	id := name
	if strings.HasPrefix(name, "arn:") {
		suffix, ok := strings.CutPrefix(name, ARN(region, ""))
		if !ok {
			return nil, errorf("NotFoundException", "Invalid arn %s in region %s", name, region)
		}
		id = suffix
	}
	s.mu.Lock()
	found := s.keys[id]
	s.mu.Unlock()
	switch {
	case found == nil, region != s.config.Regions[0] && !strings.HasPrefix(id, "mrk-"):
		return nil, errorf("NotFoundException", "Key '%s' does not exist", ARN(region, id))
	case found.disabled:
		return nil, errorf("DisabledException", "%s is disabled.", ARN(region, id))
	}
	return found, nil
}

func (s *Service) principal(accessKeyID string) (Principal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.principals[accessKeyID]
	return p, ok
}
