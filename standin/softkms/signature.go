package softkms

import (
	"net/http"

	"github.com/mrgc/mrgc/standin/sigv4"
)

// authenticate gives who has signed the request, and the region that it is for.
func (s *Service) authenticate(r *http.Request, body []byte) (Principal, string, *apiError) {
	verifier := sigv4.Verifier{Service: "kms", Regions: s.config.Regions, Now: s.config.Now, Find: func(id string) (Credentials, bool) {
		p, ok := s.principal(id)
		return p.Credentials, ok
	}}
	by, refused := verifier.Verify(r, body)
	if refused != nil {
		return Principal{}, "", &apiError{code: refused.Code, message: refused.Message}
	}
	p, _ := s.principal(by.AccessKeyID)
	return p, by.Region, nil
}
