package softkms

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/mrgc/mrgc/internal/attest"
)

// recipient is the Recipient parameter.
type recipient struct {
	AttestationDocument    []byte `json:"AttestationDocument"`
	KeyEncryptionAlgorithm string `json:"KeyEncryptionAlgorithm"`
}

// attested is a recipient whose document has been verified.
type attested struct {
	pcrs attest.PCRs
	key  *rsa.PublicKey
}

// verify checks the document as KMS does: signature, chain, age, not more. Which
// image it speaks of is the policy's to judge. To use package attest, which
// verifies no document without saying which release it must be of, it takes the
// release and the user data from the document itself.
func (s *Service) verify(r *recipient) (*attested, *apiError) {
	if r.KeyEncryptionAlgorithm != "RSAES_OAEP_SHA_256" {
		return nil, errorf("ValidationException", "Recipient's KeyEncryptionAlgorithm is %.64q, want RSAES_OAEP_SHA_256", r.KeyEncryptionAlgorithm)
	}
	says, err := unverified(r.AttestationDocument)
	if err != nil {
		return nil, errorf("ValidationException", "Recipient's AttestationDocument cannot be read: %v", err)
	}
	self := attest.Release{Version: 1, Name: "the document's own", PCRs: attest.PCRs{0: says.PCRs[0], 1: says.PCRs[1], 2: says.PCRs[2]}}
	doc, err := attest.Verify(r.AttestationDocument,
		attest.Policy{Roots: s.config.Roots, Releases: []attest.Release{self}},
		attest.Expected{UserData: says.UserData}, s.config.Now())
	if err != nil {
		return nil, errorf("ValidationException", "Recipient's AttestationDocument is not valid: %v", err)
	}
	public, err := x509.ParsePKIXPublicKey(doc.PublicKey)
	if err != nil {
		return nil, errorf("ValidationException", "Recipient's AttestationDocument has no public key: %v", err)
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok || key.Size() < 2048/8 {
		return nil, errorf("ValidationException", "Recipient's public key is not RSA of 2048 bits or more")
	}
	return &attested{pcrs: doc.PCRs, key: key}, nil
}

// values are the condition keys that a recipient gives, in lower case.
func (a *attested) values() map[string][]string {
	values := map[string][]string{"kms:recipientattestation:imagesha384": {a.pcrs[0].String()}}
	for i, v := range a.pcrs {
		values["kms:recipientattestation:pcr"+strconv.Itoa(i)] = []string{v.String()}
	}
	return values
}

// claim is what a document says before anything of it is verified.
type claim struct {
	PCRs     map[int]attest.HexBytes `cbor:"pcrs"`
	UserData []byte                  `cbor:"user_data"`
}

func unverified(document []byte) (c claim, err error) {
	var message struct {
		_           struct{} `cbor:",toarray"`
		Protected   []byte
		Unprotected cbor.RawMessage
		Payload     []byte
		Signature   []byte
	}
	body := []byte(strings.TrimPrefix(string(document), "\xd2")) // tag 18
	if err := cbor.Unmarshal(body, &message); err != nil {
		return c, fmt.Errorf("message: %w", err)
	}
	if err := cbor.Unmarshal(message.Payload, &c); err != nil {
		return c, fmt.Errorf("payload: %w", err)
	}
	return c, nil
}
