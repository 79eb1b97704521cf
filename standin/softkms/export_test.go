package softkms

import "errors"

// VerifyDocument says why a recipient's document is refused, without a signed
// request, which has to be of the service's own time.
func (s *Service) VerifyDocument(document []byte) error {
	_, refused := s.verify(&recipient{AttestationDocument: document, KeyEncryptionAlgorithm: "RSAES_OAEP_SHA_256"})
	if refused != nil {
		return errors.New(refused.message)
	}
	return nil
}
