// Receive webhooks with Go's standard library: verify the signature over the raw body before using it.
//
//	BATCHMILL_WEBHOOK_SECRET=whsec_… PORT=9000 go run webhook_receiver.go
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxBodyBytes = 1024 * 1024
	tolerance    = 5 * time.Minute
)

// Event is what every webhook has. Accept types that you do not know: `batchmill webhooks test` sends webhook.test.
type Event struct {
	Type string `json:"type"`
	Data struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	} `json:"data"`
}

// Receiver responds with 2xx only to events that are verified and handled; others are sent again.
type Receiver struct {
	key []byte
	// Delivery is at least once: in production, store ids in the transaction that uses the event.
	mutex sync.Mutex
	seen  map[string]bool
}

func (r *Receiver) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	if request.Method != http.MethodPost {
		response.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, maxBodyBytes))
	if err != nil {
		response.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	id := request.Header.Get("webhook-id")
	timestamp := request.Header.Get("webhook-timestamp")
	if !isRecent(timestamp) || !r.isSigned(id, timestamp, body, request.Header.Get("webhook-signature")) {
		response.WriteHeader(http.StatusUnauthorized)
		return
	}
	var event Event
	if err := json.Unmarshal(body, &event); err != nil {
		response.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if !r.seen[id] {
		fmt.Println(event.Type, event.Data.ID)
		r.seen[id] = true
	}
	response.WriteHeader(http.StatusNoContent)
}

// isSigned returns whether one of the signatures matches. The header has one per secret that is valid at present.
func (r *Receiver) isSigned(id, timestamp string, body []byte, header string) bool {
	mac := hmac.New(sha256.New, r.key)
	fmt.Fprintf(mac, "%s.%s.", id, timestamp)
	mac.Write(body)
	expected := mac.Sum(nil)
	for _, signature := range strings.Fields(header) {
		version, value, _ := strings.Cut(signature, ",")
		given, err := base64.StdEncoding.DecodeString(value)
		if version == "v1" && err == nil && hmac.Equal(given, expected) {
			return true
		}
	}
	return false
}

func isRecent(timestamp string) bool {
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return false
	}
	age := time.Since(time.Unix(seconds, 0))
	return age < tolerance && age > -tolerance
}

func main() {
	secret := strings.TrimPrefix(os.Getenv("BATCHMILL_WEBHOOK_SECRET"), "whsec_")
	key, err := base64.StdEncoding.DecodeString(secret)
	if err != nil || len(key) == 0 {
		log.Fatal("BATCHMILL_WEBHOOK_SECRET must be whsec_ and base64")
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "9000"
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr().(*net.TCPAddr).Port)
	server := &http.Server{
		Handler:     &Receiver{key: key, seen: map[string]bool{}},
		ReadTimeout: 30 * time.Second,
	}
	log.Fatal(server.Serve(listener))
}
