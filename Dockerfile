# Server, agent and caadmin in one image, without a shell and for no user in particular:
#
#   docker build --build-arg BUILD_DIGEST=sha256:… --build-arg BASE_DIGEST=sha256:… --tag burgee .
#
# Both bases are named by digest and have no default: what an image is built from is somebody's decision.
ARG BUILD_IMAGE=python:3.11-slim-bookworm
ARG BUILD_DIGEST
ARG BASE_IMAGE=gcr.io/distroless/python3-debian12
ARG BASE_DIGEST

FROM ${BUILD_IMAGE}@${BUILD_DIGEST} AS build
WORKDIR /src
COPY helm/image/build.lock helm/image/build.lock
RUN ["python", "-m", "pip", "install", "--no-cache-dir", "--require-hashes", "--requirement", "helm/image/build.lock"]
COPY pyproject.toml README.md LICENSE ./
COPY helm/image helm/image
COPY policy policy
COPY attestor attestor
COPY sds sds
COPY ca ca
RUN ["python", "helm/image/tree.py", "/out"]

FROM ${BASE_IMAGE}@${BASE_DIGEST}
COPY --from=build /out /
ENV PYTHONPATH=/opt/burgee PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/burgee"]
CMD ["--help"]
