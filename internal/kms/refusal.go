package kms

import (
	"errors"
	"fmt"

	"github.com/mrgc/mrgc/internal/awscall"
)

// codes are KMS's errors that say something of the request (AWS KMS API
// reference, Decrypt and GenerateDataKey). All others are of the way there:
// signature, clock, throttling, KMS itself.
var codes = map[string]error{
	"AccessDeniedException":      ErrDenied,
	"DisabledException":          ErrDenied,
	"KMSInvalidStateException":   ErrDenied,
	"NotFoundException":          ErrDenied,
	"InvalidKeyUsageException":   ErrDenied,
	"InvalidCiphertextException": ErrCiphertext,
	"IncorrectKeyException":      ErrCiphertext,
}

// classify says of which class the error of a call is.
func classify(err error) error {
	var refused *awscall.Refusal
	if errors.As(err, &refused) && codes[refused.Code] != nil {
		return fmt.Errorf("%w: %s", codes[refused.Code], refused.Code)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
