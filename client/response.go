package client

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// response builds what an SDK gets to see.
func response(req *http.Request, status int, contentType string, body io.ReadCloser) *http.Response {
	return &http.Response{
		Status:        strconv.Itoa(status) + " " + http.StatusText(status),
		StatusCode:    status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        http.Header{"Content-Type": {contentType}},
		Body:          body,
		ContentLength: -1,
		Request:       req,
	}
}

func errorResponse(req *http.Request, e *api.Error, requestID string) *http.Response {
	resp := response(req, e.Status, "application/json", io.NopCloser(bytes.NewReader(e.Body())))
	setRequestID(resp.Header, requestID)
	setRetryAfter(resp, e.RetryAfter)
	return resp
}

// setRequestID names what was sent to the cluster where OpenAI's SDKs look for it:
// they show the header as _request_id, and in their errors.
func setRequestID(h http.Header, id string) {
	if id != "" {
		h.Set("X-Request-Id", id)
	}
}

func setRetryAfter(resp *http.Response, after time.Duration) {
	if after > 0 {
		resp.Header.Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
}

// openResponse waits for the sealed head and makes a response whose body opens
// the rest as it is read. It says whose recipient answers, too.
func openResponse(req *http.Request, outer *http.Response, sealed *seal.Sealed, check receiptCheck) (resp *http.Response, answeredBy seal.KeyID, err error) {
	reader := sealed.OpenResponse(outer.Body)
	head, err := reader.Head()
	if err != nil {
		_ = outer.Body.Close() // the first error says it
		var failed *seal.ResponseError
		if errors.As(err, &failed) {
			return nil, answeredBy, api.ParseError(http.StatusBadGateway, failed.Body)
		}
		if req.Context().Err() != nil {
			return nil, answeredBy, req.Context().Err()
		}
		refused := api.Errorf(http.StatusBadGateway, "answer_cut", "the answer was cut off or damaged before it began; try again")
		if errors.Is(err, seal.ErrCut) {
			return nil, answeredBy, &unanswered{err: refused, ran: true, there: true}
		}
		return nil, answeredBy, refused
	}
	trailer := http.Header{api.HeaderUsage: nil}
	check.status, check.data = head.Status, sha256.New()
	resp = response(req, head.Status, head.ContentType, &sealedBody{reader: reader, outer: outer.Body, trailer: trailer, check: check})
	resp.Trailer = trailer
	resp.Header.Set(api.HeaderRequestID, check.requestID.String())
	setRetryAfter(resp, head.RetryAfter)
	return resp, reader.KeyID(), nil
}

// sealedBody is the opened answer. Its Read returns io.EOF only for a complete
// one, whose receipt holds, and trailer then says what it has used.
type sealedBody struct {
	reader  *seal.ResponseReader
	outer   io.Closer
	trailer http.Header
	check   receiptCheck
	ended   error // sticky
}

func (b *sealedBody) Read(p []byte) (int, error) {
	if b.ended != nil {
		return 0, b.ended
	}
	n, err := b.reader.Read(p)
	b.check.data.Write(p[:n]) // never fails
	if errors.Is(err, io.EOF) {
		end, _ := b.reader.End() // an answer that is complete has one
		if b.ended = b.check.end(b.reader.KeyID(), end); b.ended != nil {
			return n, b.ended
		}
		b.ended = io.EOF
		if end.PromptTokens > 0 || end.OutputTokens > 0 {
			b.trailer.Set(api.HeaderUsage, fmt.Sprintf("%d/%d", end.PromptTokens, end.OutputTokens))
		}
	}
	return n, err
}

func (b *sealedBody) Close() error { return b.outer.Close() }
