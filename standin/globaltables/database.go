package globaltables

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"time"
)

// database is a DynamoDB Local, spoken to as the SDK does: JSON 1.0 over HTTP, with the
// operation in a header (Amazon DynamoDB developer guide, "DynamoDB low-level API").
type database struct {
	url    string
	region string
	http   *http.Client
}

const (
	dynamoDB    = "DynamoDB_20120810."
	streams     = "DynamoDBStreams_20120810."
	contentType = "application/x-amz-json-1.0"
	errorPrefix = "com.amazonaws.dynamodb.v20120810#"
	callTimeout = 1500 * time.Millisecond // less than what SDKs wait
)

func newDatabase(url, region string) *database {
	return &database{url: url, region: region, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: callTimeout}}
}

// answer is what a DynamoDB says.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask sends a request as it is. DynamoDB Local keeps a database for each access key and
// region, so all requests bear the same.
func (d *database) ask(ctx context.Context, target string, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url+"/", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("X-Amz-Target", target)
	req.Header.Set("X-Amz-Date", time.Now().UTC().Format("20060102T150405Z"))
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=globaltables/20260101/"+d.region+"/dynamodb/aws4_request, SignedHeaders=host, Signature=0")
	resp, err := d.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(resp.Body)
	return a, err
}

// call has an operation done, and reads its answer into out, unless that is nil.
func (d *database) call(ctx context.Context, target string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	a, err := d.ask(ctx, target, body)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return fmt.Errorf("%s: status %d: %s", target, a.status, a.body)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(a.body, out)
}

// write gives an answer as it came.
func (a answer) write(w http.ResponseWriter) {
	for _, name := range []string{"Content-Type", "X-Amzn-Requestid", "X-Amz-Crc32"} {
		if value := a.header.Get(name); value != "" {
			w.Header().Set(name, value)
		}
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

// edited is the same answer with another body, and so another checksum, which SDKs
// check.
func (a answer) edited(body any) (answer, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return a, err
	}
	a.header = a.header.Clone()
	a.header.Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(text)), 10))
	a.body = text
	return a, nil
}

// fail answers with an error of DynamoDB's.
func fail(w http.ResponseWriter, status int, code, message string) {
	text, err := json.Marshal(map[string]string{"__type": errorPrefix + code, "message": message})
	if err != nil {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

// refuse answers what no repetition makes better.
func refuse(w http.ResponseWriter, err error) {
	fail(w, http.StatusBadRequest, "ValidationException", err.Error())
}

// unavailable answers what SDKs try again.
func unavailable(w http.ResponseWriter, err error) {
	fail(w, http.StatusInternalServerError, "InternalServerError", err.Error())
}
