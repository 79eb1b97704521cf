package client

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/seal"
)

// Receipt is an enclave's signed statement on one answer, with what proves the
// signature: the enclave's claims, which name its receipt key, and the attestation
// of these. In JSON it is a file for [Receipt.Verify], and mrgc verify-receipt.
//
// It has hashes of request and answer, so whoever holds it can test guesses of
// either: it is as confidential as they are.
type Receipt struct {
	Receipt     []byte    `json:"receipt"`     // COSE_Sign1 (docs/protocol.md)
	Claims      []byte    `json:"claims"`      // deterministic CBOR
	Attestation []byte    `json:"attestation"` // COSE_Sign1 document whose user data is SHA-256(claims)
	VerifiedAt  time.Time `json:"verified_at"` // when the attestation was verified: documents age within minutes
}

// SaltID names the salt of a receipt's request: answers with the same one may
// have been made from one cache, those with different ones were not.
type SaltID = seal.SaltID

// ErrNoReceipt is an answer without the receipt that the policy requires.
var ErrNoReceipt = errors.New("the answer has no receipt")

// Statement is what a receipt that holds says.
type Statement struct {
	seal.Receipt
	Claims  seal.Claims
	Release Release // that the enclave is, by its measurements
}

// maxReceiptFileBytes is above the largest claims, document and receipt.
const maxReceiptFileBytes = 256 << 10

// ParseReceipt reads a receipt's file, strictly. It verifies nothing.
func ParseReceipt(file []byte) (r Receipt, err error) {
	if len(file) > maxReceiptFileBytes {
		return r, fmt.Errorf("receipt: %d bytes, more than %d", len(file), maxReceiptFileBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(file))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return r, fmt.Errorf("receipt: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("receipt: data after it")
	}
	return r, nil
}

// Verify says what the receipt states, if an enclave that satisfies the policy
// has signed it. The attestation is verified as of VerifiedAt, which is whoever's
// who wrote the file: by then the enclave had the key, and the receipt is not
// older than its claims.
func (r Receipt) Verify(policy Policy) (Statement, error) {
	if err := policy.check(); err != nil {
		return Statement{}, err
	}
	signer, err := seal.ParseRecipient(r.Claims)
	if err != nil {
		return Statement{}, fmt.Errorf("receipt: %w", err)
	}
	claims := signer.Claims()
	if !policy.acceptsType(claims.Type) {
		return Statement{}, fmt.Errorf("receipt: recipients of type %s are not accepted", claims.Type)
	}
	if !policy.acceptsMode(claims.Mode) {
		return Statement{}, fmt.Errorf("receipt: %w", policy.refusedMode(claims.Mode))
	}
	if len(policy.Regions) > 0 && !slices.Contains(policy.Regions, claims.Region) {
		return Statement{}, fmt.Errorf("receipt: region %q is not accepted", claims.Region)
	}
	if !claims.ValidAt(r.VerifiedAt) {
		return Statement{}, errors.New("receipt: claims were not valid when they were verified")
	}
	document, err := policy.attested(signer, r.Attestation, r.VerifiedAt)
	if err != nil {
		return Statement{}, fmt.Errorf("receipt: %w", err)
	}
	stated, err := signer.VerifyReceipt(r.Receipt)
	if err != nil {
		return Statement{}, err
	}
	return Statement{Receipt: stated, Claims: claims, Release: document.Release}, nil
}

// receiptCheck is what the client itself knows of an exchange.
type receiptCheck struct {
	client     *Client
	requestID  seal.RequestID
	operation  seal.Operation
	request    [sha256.Size]byte
	recipients []*recipient // that the request was sealed to
	status     int
	data       hash.Hash // of the answer's data
}

func (c *Client) receiptCheck(q *question, id seal.RequestID, recipients []*recipient) receiptCheck {
	return receiptCheck{client: c, requestID: id, operation: q.operation, request: sha256.Sum256(q.body), recipients: recipients}
}

// end checks the receipt of a complete answer against the exchange, and hands it
// on.
func (c *receiptCheck) end(answeredBy seal.KeyID, end seal.End) error {
	if end.Receipt == nil {
		if c.client.config.Policy.RequireReceipt {
			return ErrNoReceipt
		}
		return nil
	}
	at := slices.IndexFunc(c.recipients, func(r *recipient) bool { return r.KeyID() == answeredBy })
	if at < 0 {
		return fmt.Errorf("%w: it is of no recipient", seal.ErrReceipt)
	}
	signer := c.recipients[at]
	receipt, err := signer.VerifyReceipt(end.Receipt)
	if err != nil {
		return err
	}
	if err := c.matches(receipt, end); err != nil {
		return fmt.Errorf("%w: %w", seal.ErrReceipt, err)
	}
	if c.client.config.Receipts != nil {
		c.client.config.Receipts(c.requestID.String(), Receipt{
			Receipt: end.Receipt, Claims: signer.RawClaims(), Attestation: signer.attestation, VerifiedAt: signer.verifiedAt.UTC(),
		})
	}
	return nil
}

func (c *receiptCheck) matches(r seal.Receipt, end seal.End) error {
	switch {
	case r.Enclave.RequestID != c.requestID || r.Enclave.Operation != c.operation || r.Enclave.RequestSHA256 != c.request:
		return errors.New("it is of another request")
	case r.Enclave.Status != c.status || r.Enclave.ResponseSHA256 != [sha256.Size]byte(c.data.Sum(nil)):
		return errors.New("it is of another answer")
	case r.Host.PromptTokens != end.PromptTokens || r.Host.OutputTokens != end.OutputTokens:
		return errors.New("it has other token counts than the answer")
	}
	return nil
}
