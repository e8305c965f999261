# The product's images: static programs, on nothing.
#
# docker build --target agent -t …/agent .     compiles inside
# make images                                  where no image can be pulled: compiles
#                                              outside and builds the stages *-prebuilt

FROM scratch AS agent-prebuilt
COPY agent operation /
USER 65532
ENTRYPOINT ["/agent"]

FROM scratch AS controller-prebuilt
COPY controller /controller
USER 65532
ENTRYPOINT ["/controller"]

FROM scratch AS webhook-prebuilt
COPY webhook /webhook
USER 65532
ENTRYPOINT ["/webhook"]

FROM scratch AS repository-server-prebuilt
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY operation repository-server /
USER 65532
ENTRYPOINT ["/repository-server"]

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" \
    -o /out/ ./cmd/agent ./cmd/operation ./cmd/controller ./cmd/webhook ./cmd/repository-server

FROM scratch AS agent
COPY --from=build /out/agent /out/operation /
USER 65532
ENTRYPOINT ["/agent"]

FROM scratch AS controller
COPY --from=build /out/controller /controller
USER 65532
ENTRYPOINT ["/controller"]

FROM scratch AS webhook
COPY --from=build /out/webhook /webhook
USER 65532
ENTRYPOINT ["/webhook"]

FROM scratch AS repository-server
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/operation /out/repository-server /
USER 65532
ENTRYPOINT ["/repository-server"]
